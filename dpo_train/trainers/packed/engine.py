"""The engine: a step of all trials of a pack in one forward and backward, and their evaluations.

Driven by one thread at a time. Trials join and leave between two calls.
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
from dpo_train.config import LoraConfig, ModelConfig, TrainConfig
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
from dpo_train.trainers.packed import adapters
from dpo_train.trainers.packed.adapters import Layer, Layout
from dpo_train.trainers.packed.forward import ATTENTION, completion_logps
from dpo_train.trainers.packed.held_out import HeldOutPairs
from dpo_train.trainers.packed.linear import StackedLinear
from dpo_train.trainers.packed.loss_inputs import LossInputs
from dpo_train.trainers.packed.pack import Pack
from dpo_train.trainers.packed.pack_size import PackSize
from dpo_train.trainers.packed.rows import Pair, Split, collate, token_counts
from dpo_train.trainers.packed.self_check import AdaptedBase, check_once, compare_with_reference
from dpo_train.trainers.packed.trial import PackedTrial
from dpo_train.trainers.session import one_pair_too_much
from dpo_train.trainers.token_bound import TokenBound

_MOST_TOKENS = {"cpu": 4096, "cuda": 65536}
"""More tokens make no pass faster."""


class PackedEngine:
    """A base with the adapters of many trials."""

    def __init__(
        self,
        base: ModelConfig,
        prepared: Path,
        device: str,
        memory: MemoryBounds = NO_BOUNDS,
    ) -> None:
        data = reference.prepare(prepared)
        self.reference_pairs = data.computed_pairs
        warm = model.load_base(base, device, prepared)
        self.tokenizer = warm.tokenizer
        self.base = warm.fresh(trained_in_full=False).eval().requires_grad_(False)
        self._own_attention = self.base.config._attn_implementation
        self.base.set_attn_implementation(ATTENTION)
        warm.undo = self.close
        self._checkpointed: list[Any] = []
        """The base's layers, once a trial asked for activation checkpointing or memory did."""
        self.is_short_of_memory = False
        """Whether memory holds no pair without activation checkpointing."""
        self.is_closed = False
        self._device = device
        self._prepared = prepared
        self.train, self.eval = (Split(data.split(name)[:]) for name in ("train", "eval"))
        self._layers: dict[str, tuple[Layer, ...]] = {}
        self._stacks: dict[Layer, StackedLinear] = {}
        self._packs: list[Pack] = []
        self.pack_size = PackSize()
        self._held_out_pairs = HeldOutPairs(self.eval, device)
        weights = mapped_bytes(self.base)
        self._token_bound = TokenBound(device, memory, weights, _MOST_TOKENS[device])
        self._measured: set[tuple[tuple[Layer, ...], bool]] = set()
        self.tokens_at_once = 0
        """The most tokens of the last pass; of the first one before that."""
        compare_with_reference(self.base, self.eval, device)

    def join(self, config: TrainConfig) -> PackedTrial:
        """A new trial, which trains when it is named to `step`."""
        assert config.lora is not None
        checkpointed = bool(self._checkpointed or config.optim.activation_checkpointing)
        if checkpointed:
            give_back_at_once()  # the comparison with PEFT takes memory too
        layout = Layout(self._adapted_layers(config.lora, checkpointed), config.lora.r)
        trial = PackedTrial(config, layout, len(self.train.pairs), self._device)
        if checkpointed:  # the comparison with PEFT may have switched it off
            self._compute_layers_again()
        self._measure_or_save_memory(trial)
        self.tokens_at_once = self.tokens_at_once or self.tokens_per_pass([trial])
        return trial

    def tokens_per_pass(self, trials: Sequence[PackedTrial]) -> int:
        """The most tokens of a pass over those trials: it bounds the memory of the pass."""
        # Weights, gradient and two moments, and what a new pack holds beside the old one.
        vectors = sum(6 * trial.weights.nbytes for trial in trials)
        return self._token_bound.tokens(self._longest, vectors)

    def close(self) -> None:
        """Leaves the base as it was; its next borrower sees to it too."""
        if self.is_closed:
            return
        self.is_closed = True
        self._packs.clear()
        for stack in self._stacks.values():
            stack.remove()
        self.base.set_attn_implementation(self._own_attention)

    def step(self, trials: Sequence[PackedTrial]) -> None:
        """Computes for each trial the next part of its step, and updates those whose step it ends.

        Memory that runs out lowers the tokens of a pass for good. No trial may be due.
        """

        def steps() -> None:
            most = self.tokens_at_once = self.tokens_per_pass(trials)
            size = self.pack_size.of(len(trials))
            began = self._now()
            tokens = sum(self._step(pack, most) for pack in self._packs_of(trials, most, size))
            if self.pack_size.is_trying:
                self.pack_size.took(tokens, self._now() - began)

        if not self._fits(steps, trials):
            for trial in trials:
                trial.rewind()

    def evaluate(self, trials: Sequence[PackedTrial]) -> list[dict[str, metrics.Floats] | None]:
        """Each held-out metric's value for each pair, with `loss` the trial's own, for each trial;
        of all in the same passes. None where a log-prob is no number."""
        scores: list[np.ndarray[Any, Any]] = []

        def score() -> None:
            most = self.tokens_per_pass(trials)
            packs = self._packs_of(trials, most)
            scores[:] = [each for pack in packs for each in self._held_out(pack, most)]

        while not self._fits(score, trials):
            pass
        give_back()
        return [
            self._held_out_pairs.values(trial, self.eval.reference if trial.is_reference else logps)
            for trial, logps in zip(trials, scores, strict=True)
        ]

    def _now(self) -> float:
        if self._device == "cuda" and self.pack_size.is_trying:
            torch.cuda.synchronize()
        return time.perf_counter()

    def _step(self, pack: Pack, most: int) -> int:
        """A pass of at most so many tokens. Returns the tokens that it trained on."""
        parts = self._parts(pack, most)
        pairs = self._pairs(parts)
        rows = collate(pairs, self._device)
        self._put_on(pack, rows.token_counts)
        # Before the pass: a copy to a GPU would wait for the end of it.
        inputs = LossInputs(pack.trials, parts, self.train, self._device)
        losses = inputs.losses(completion_logps(self.base, rows))
        losses.sum().backward()
        for trial, part, own, loss in zip(pack.trials, parts, pairs, losses.detach(), strict=True):
            if trial.add(len(part), loss, sum(pair.padded_tokens for pair in own)):
                trial.end_step()
        return sum(len(pair.ids) for own in pairs for pair in own)

    def _parts(self, pack: Pack, most: int) -> list[list[int]]:
        """The pairs of each trial in one pass, by their numbers: at most `most` tokens with the
        padding, and no more pairs than the smallest batch has, so that none waits empty."""
        smallest = min(trial.config.optim.pairs_at_once for trial in pack.trials)
        fit = int(most / self.train.mean_length / len(pack.trials))
        each = max(1, min(smallest, fit))
        while True:
            parts = [trial.take(each) for trial in pack.trials]
            tokens = sum(token_counts(self._pairs(parts), self._device))
            if each == 1 or tokens <= most:
                return parts
            each -= 1

    def _pairs(self, parts: list[list[int]]) -> list[list[Pair]]:
        return [[self.train.pairs[number] for number in part] for part in parts]

    def _held_out(self, pack: Pack, most: int) -> np.ndarray[Any, Any]:
        """Log-probs of the eval pairs under each trial: (k, pairs, 2)."""
        k = len(pack.trials)
        scores = np.zeros((k, len(self.eval.pairs), 2))
        self._put_on(pack)
        for members, rows in self._held_out_pairs.rows(most // k):
            with torch.no_grad():
                logps = completion_logps(self.base, rows.tile(k))
            scores[:, members] = logps.double().cpu().numpy().reshape(k, len(members), 2)
        return scores

    def _packs_of(
        self, trials: Sequence[PackedTrial], tokens: int, most: int | None = None
    ) -> list[Pack]:
        """The trials in packs that fit a pass of so many tokens, of at most so many trials; those
        of the call before where nothing changed."""
        size = max(1, min(most or len(trials), tokens // self.train.longest))
        wanted = [tuple(trials[at : at + size]) for at in range(0, len(trials), size)]
        if [pack.trials for pack in self._packs] != wanted:
            for pack in self._packs:
                pack.dissolve()
            self._packs = [Pack(members) for members in wanted]
        return self._packs

    def _put_on(self, pack: Pack, token_counts: Sequence[int] = ()) -> None:
        """Gives the base the pack's adapters; if one of its trials asks for it, the layers are
        computed again in the backward, which changes the numbers of none."""
        pack.put_onto(self._stacks, token_counts)
        again = self._is_checkpointed(pack.trials)
        for layer in self._checkpointed:
            layer.training = again

    def _measure_or_save_memory(self, trial: PackedTrial) -> None:
        needed = self._longest, 6 * trial.weights.nbytes
        if not (self._measure(trial) and self._token_bound.holds(*needed)):
            self._save_memory([trial])

    def _is_checkpointed(self, trials: Sequence[PackedTrial]) -> bool:
        asked = any(trial.config.optim.activation_checkpointing for trial in trials)
        return asked or self.is_short_of_memory

    def _save_memory(self, trials: Sequence[PackedTrial]) -> bool:
        """Switches activation checkpointing on for good, if it is off and these trials leave that
        to memory. Returns whether it did, and a first pass then fits."""
        left_open = all(trial.config.optim.activation_checkpointing is None for trial in trials)
        if self.is_short_of_memory or not left_open:
            return False
        self.is_short_of_memory = True
        self._compute_layers_again()
        self._token_bound.forget_measured()
        self._measured.clear()
        return all([self._measure(trial) for trial in trials])

    def _compute_layers_again(self) -> None:
        give_back_at_once()
        self._checkpointed = checkpointed_layers(self.base)

    @property
    def _longest(self) -> int:
        """Tokens of the longest pair: no pass can have fewer."""
        return max(self.train.longest, self.eval.longest)

    def _measure(self, trial: PackedTrial) -> bool:
        """Counts what a token keeps for the backward, in a first pass over one pair. Returns
        whether memory sufficed for that."""
        measured = trial.own_layout.layers, self._is_checkpointed([trial])
        if measured in self._measured:
            return True
        pairs = sorted(self.train.pairs, key=lambda pair: len(pair.ids))
        rows = collate([[pairs[len(pairs) // 2]]], self._device)
        self._put_on(Pack([trial]))
        base = self.base
        try:
            kept = kept_bytes(
                lambda: completion_logps(base, rows), self._checkpointed, base.parameters()
            )
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return False
        finally:
            for stack in self._stacks.values():
                stack.adapters = None
            give_back()
        self._token_bound.measured(kept, rows.ids.numel(), self._is_checkpointed([trial]))
        self._measured.add(measured)
        return True

    def _fits(self, act: Callable[[], None], trials: Sequence[PackedTrial]) -> bool:
        """Whether memory sufficed; if not, the next pass has half the tokens, or activation
        checkpointing where it had one pair. Raises OutOfMemory if there is no less."""
        tokens = self.tokens_per_pass(trials)
        try:
            act()
            return True
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # Not before: the error holds all tensors of the pass.
        for stack in self._stacks.values():
            stack.adapters = None
        self._packs = []
        give_back()
        if tokens > self._longest:
            self._token_bound.halve(tokens)
        elif not self._save_memory(trials):
            raise OutOfMemory(one_pair_too_much(self._is_checkpointed(trials)))
        return False

    def _adapted_layers(self, lora: LoraConfig, checkpointed: bool) -> tuple[Layer, ...]:
        """Raises InputError for what the self-check refuses: at every call, and without a change
        to what other trials train."""
        key = str(lora.target_modules)
        if key not in self._layers:
            found = adapters.adapted_layers(self.base, lora)
            modules = dict(self.base.named_modules())
            for layer in found:
                if layer not in self._stacks:
                    self._stacks[layer] = StackedLinear(modules[layer.name])
            for stack in self._stacks.values():
                stack.adapters = None
            adapted = AdaptedBase(
                self.base,
                self._stacks,
                found,
                lora,
                self._device,
                self._own_attention,
                checkpointed,
            )
            check_once(self._prepared, adapted, self.train.pairs)
            self._layers[key] = found
        return self._layers[key]
