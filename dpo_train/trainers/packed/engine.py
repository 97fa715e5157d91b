"""The packed engine: trains and evaluates many trials over one base.

A step is one forward and backward over rows of all trials. One thread at a time calls the engine,
and trials join and leave between two calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpo_train import model, reference
from dpo_train.activation_checkpointing import checkpointed_layers, kept_bytes
from dpo_train.config import ModelConfig, TrainConfig
from dpo_train.errors import OutOfMemory
from dpo_train.memory import (
    NO_BOUNDS,
    MemoryBounds,
    give_back,
    give_back_at_once,
    is_out_of_memory,
    mapped_bytes,
)
from dpo_train.scoring import metrics
from dpo_train.trainers.packed.adapters import Layer, Layout
from dpo_train.trainers.packed.forward import ATTENTION, completion_logps
from dpo_train.trainers.packed.held_out import HeldOutPairs
from dpo_train.trainers.packed.loss_inputs import LossInputs
from dpo_train.trainers.packed.pack import Pack
from dpo_train.trainers.packed.pack_size import PackSize
from dpo_train.trainers.packed.rows import Pair, Split, collate, token_counts
from dpo_train.trainers.packed.self_check import compare_with_reference
from dpo_train.trainers.packed.stacked_layers import StackedLayers
from dpo_train.trainers.packed.trial import PackedTrial
from dpo_train.trainers.session import one_pair_too_much
from dpo_train.trainers.token_bound import TokenBound

_MOST_TOKENS = {"cpu": 4096, "cuda": 65536}
"""The most tokens of a pass; more make it no faster."""


class PackedEngine:
    """A base with the adapters of many trials."""

    def __init__(
        self, base: ModelConfig, prepared: Path, device: str, memory: MemoryBounds = NO_BOUNDS
    ) -> None:
        """Loads the base and compares its packed forward with the prepared reference pass.

        Raises InputError if they differ, or if the base can't run packed.
        """
        # The pairs.
        data = reference.prepare(prepared)
        self.reference_pairs = data.computed_pairs
        self.train, self.eval = (Split(data.split(name)[:]) for name in ("train", "eval"))
        self._held_out_pairs = HeldOutPairs(self.eval, device)
        # The base, whose attention is the packed one until it is closed.
        warm = model.load_base(base, device, prepared)
        self.tokenizer = warm.tokenizer
        self.base = warm.fresh(trained_in_full=False).eval().requires_grad_(False)
        self._own_attention = self.base.config._attn_implementation
        self.base.set_attn_implementation(ATTENTION)
        warm.undo = self.close
        self.is_closed = False
        self._device = device
        # The trials, in packs.
        self._stacked = StackedLayers(self.base, self._own_attention, prepared, device)
        self._packs: list[Pack] = []
        self.pack_size = PackSize()
        # Memory.
        self._checkpointed_layers: list[Any] = []
        """The base's layers, once a trial or a lack of memory made them ready for checkpointing."""
        self.is_short_of_memory = False
        """Whether memory can't hold one pair without activation checkpointing."""
        weights = mapped_bytes(self.base)
        self._token_bound = TokenBound(device, memory, weights, _MOST_TOKENS[device])
        self._measured: set[tuple[tuple[Layer, ...], bool]] = set()
        """The adapted layers that `_measure` has measured, with or without checkpointing."""
        self.tokens_at_once = 0
        """The most tokens of the last pass, or of the first one until it has run."""
        compare_with_reference(self.base, self.eval, device)

    def join(self, config: TrainConfig) -> PackedTrial:
        """Returns a new trial, which trains in each `step` that is given it.

        Raises InputError if packed can't train its layers as PEFT does.
        """
        assert config.lora is not None
        checkpointed = bool(self._checkpointed_layers or config.optim.activation_checkpointing)
        if checkpointed:
            give_back_at_once()  # the comparison with PEFT needs the memory
        layers = self._stacked.adapted_by(config.lora, self.train, checkpointed)
        layout = Layout(layers, config.lora.r)
        trial = PackedTrial(config, layout, len(self.train.pairs), self._device)
        if checkpointed:  # the comparison with PEFT may have switched it off
            self._prepare_checkpointing()
        fits = self._measure(trial) and self._token_bound.holds(self._longest, trial.vector_bytes)
        if not fits:
            self._save_memory([trial])
        self.tokens_at_once = self.tokens_at_once or self.tokens_per_pass([trial])
        return trial

    def tokens_per_pass(self, trials: Sequence[PackedTrial]) -> int:
        """Returns the most tokens of a pass of these trials, which bounds its memory."""
        return self._token_bound.tokens(self._longest, sum(trial.vector_bytes for trial in trials))

    def close(self) -> None:
        """Leaves the base as it was; also called when the base is lent to a later session."""
        if self.is_closed:
            return
        self.is_closed = True
        self._packs.clear()
        self._stacked.remove()
        self.base.set_attn_implementation(self._own_attention)

    def step(self, trials: Sequence[PackedTrial]) -> None:
        """Computes the next pairs of each trial's step, and updates trials whose step is complete.

        No trial may be due for an evaluation. If memory runs out, the trials' steps begin again at
        the next call, with fewer tokens in a pass.
        """

        def train() -> None:
            most = self.tokens_at_once = self.tokens_per_pass(trials)
            size = self.pack_size.trials_per_pass(len(trials))
            began = self._now()
            packs = self._packs_of(trials, most, size)
            tokens = sum(self._train_pack(pack, most) for pack in packs)
            if self.pack_size.is_trying:
                self.pack_size.record_step(tokens, self._now() - began)

        if not self._ran_within_memory(train, trials):
            for trial in trials:
                trial.restart_step()

    def evaluate(self, trials: Sequence[PackedTrial]) -> list[dict[str, metrics.Floats] | None]:
        """Returns for each trial the metrics and its own loss (`loss`) of each eval pair, (P,).

        It is None if a log-prob is not finite. All trials share the passes.
        """
        logps: list[np.ndarray[Any, Any]] = []

        def score() -> None:
            most = self.tokens_per_pass(trials)
            packs = self._packs_of(trials, most)
            logps[:] = [of_trial for pack in packs for of_trial in self._eval_logps(pack, most)]

        while not self._ran_within_memory(score, trials):
            pass
        give_back()
        return [
            self._held_out_pairs.values(trial, self.eval.reference if trial.is_reference else own)
            for trial, own in zip(trials, logps, strict=True)
        ]

    def _now(self) -> float:
        """Returns seconds; waits for the GPU first, while pack sizes are being tried."""
        if self._device == "cuda" and self.pack_size.is_trying:
            torch.cuda.synchronize()
        return time.perf_counter()

    def _train_pack(self, pack: Pack, most: int) -> int:
        """Runs one forward and backward for a pack of k trials, over at most `most` tokens.

        Returns the tokens that it trained on, without padding.
        """
        # Each trial's next pairs, laid out as T tokens.
        indices = self._next_pairs(pack, most)
        pairs = self._pairs(indices)
        rows = collate(pairs, self._device)
        self._install(pack, rows.token_counts)
        # A copy to a GPU waits for the passes before it, so we copy before this pass begins.
        inputs = LossInputs(pack.trials, indices, self.train, self._device)

        # The pass: log-probs (P, 2), losses (k,), and gradients, added to those of the trials.
        losses = inputs.losses(completion_logps(self.base, rows))
        losses.sum().backward()

        # The update of each trial whose batch is complete.
        for trial, own, loss in zip(pack.trials, pairs, losses.detach(), strict=True):
            if trial.add_computed(len(own), loss, sum(pair.padded_tokens for pair in own)):
                trial.end_step()
        return sum(len(pair.ids) for own in pairs for pair in own)

    def _next_pairs(self, pack: Pack, most: int) -> list[list[int]]:
        """Returns each trial's pairs for one pass, as indices into the train split.

        They have at most `most` tokens with padding, or are one pair of each trial. No trial gets
        more pairs than the smallest batch has, so that each trial has pairs in every pass.
        """
        smallest = min(trial.config.optim.pairs_at_once for trial in pack.trials)
        fitting = int(most / self.train.mean_length / len(pack.trials))
        count = max(1, min(smallest, fitting))
        while True:
            indices = [trial.next_pairs(count) for trial in pack.trials]
            tokens = sum(token_counts(self._pairs(indices), self._device))
            if count == 1 or tokens <= most:
                return indices
            count -= 1

    def _pairs(self, indices: list[list[int]]) -> list[list[Pair]]:
        return [[self.train.pairs[index] for index in of_trial] for of_trial in indices]

    def _eval_logps(self, pack: Pack, most: int) -> np.ndarray[Any, Any]:
        """Returns the log-probs of the eval pairs under each trial, (k, P, 2) in nats."""
        k = len(pack.trials)
        scores = np.zeros((k, len(self.eval.pairs), 2))
        self._install(pack)
        for indices, rows in self._held_out_pairs.rows(most // k):
            with torch.no_grad():
                logps = completion_logps(self.base, rows.tile(k))
            scores[:, indices] = logps.double().cpu().numpy().reshape(k, len(indices), 2)
        return scores

    def _packs_of(
        self, trials: Sequence[PackedTrial], most_tokens: int, most_trials: int | None = None
    ) -> list[Pack]:
        """Returns the trials in packs of at most `most_trials`, whose passes fit `most_tokens`.

        If nothing has changed, these are the packs of the last call.
        """
        size = max(1, min(most_trials or len(trials), most_tokens // self.train.longest))
        wanted = [tuple(trials[at : at + size]) for at in range(0, len(trials), size)]
        if [pack.trials for pack in self._packs] != wanted:
            for pack in self._packs:
                pack.dissolve()
            self._packs = [Pack(members) for members in wanted]
        return self._packs

    def _install(self, pack: Pack, token_counts: Sequence[int] = ()) -> None:
        """Gives the base the pack's adapters. If one of its trials requests activation
        checkpointing, all have it, which changes no numbers."""
        pack.put_onto(self._stacked.by_layer, token_counts)
        checkpointed = self._is_checkpointed(pack.trials)
        for layer in self._checkpointed_layers:
            layer.training = checkpointed  # the layer is checkpointed while this is true

    def _is_checkpointed(self, trials: Sequence[PackedTrial]) -> bool:
        requested = any(trial.config.optim.activation_checkpointing for trial in trials)
        return requested or self.is_short_of_memory

    def _save_memory(self, trials: Sequence[PackedTrial]) -> bool:
        """Switches activation checkpointing on permanently, if it is off and no trial's
        configuration sets it.

        Returns whether it was switched on and memory now holds a first pass.
        """
        is_open = all(trial.config.optim.activation_checkpointing is None for trial in trials)
        if self.is_short_of_memory or not is_open:
            return False
        self.is_short_of_memory = True
        self._prepare_checkpointing()
        self._token_bound.forget_measured()
        self._measured.clear()
        return all([self._measure(trial) for trial in trials])

    def _prepare_checkpointing(self) -> None:
        give_back_at_once()
        self._checkpointed_layers = checkpointed_layers(self.base)

    @property
    def _longest(self) -> int:
        """Tokens of the longest pair, which is the smallest pass that serves all pairs."""
        return max(self.train.longest, self.eval.longest)

    def _measure(self, trial: PackedTrial) -> bool:
        """Measures what a token keeps for the backward, in a forward over the median pair. Returns
        whether memory sufficed."""
        checkpointed = self._is_checkpointed([trial])
        measured = trial.own_layout.layers, checkpointed
        if measured in self._measured:
            return True
        pairs = sorted(self.train.pairs, key=lambda pair: len(pair.ids))
        rows = collate([[pairs[len(pairs) // 2]]], self._device)
        self._install(Pack([trial]))
        base = self.base
        try:
            kept = kept_bytes(
                lambda: completion_logps(base, rows), self._checkpointed_layers, base.parameters()
            )
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return False
        finally:
            self._stacked.clear()
            give_back()
        self._token_bound.measured(kept, rows.ids.numel(), checkpointed)
        self._measured.add(measured)
        return True

    def _ran_within_memory(self, act: Callable[[], None], trials: Sequence[PackedTrial]) -> bool:
        """Runs `act` and returns whether memory sufficed.

        If not, later passes have half the tokens, or activation checkpointing if this one had a
        single pair. Raises OutOfMemory if nothing is left to save.
        """
        tokens = self.tokens_per_pass(trials)
        try:
            act()
            return True
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # The error held all tensors of the pass, so memory can be freed only now.
        self._stacked.clear()
        self._packs = []
        give_back()
        if tokens > self._longest:
            self._token_bound.halve(tokens)
        elif not self._save_memory(trials):
            raise OutOfMemory(one_pair_too_much(self._is_checkpointed(trials)))
        return False
