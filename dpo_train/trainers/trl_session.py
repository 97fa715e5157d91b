"""Trains one trial with TRL's DPOTrainer: full fine-tuning or LoRA, with every loss of TRL.

TRL's loop runs in a thread, which is held at each evaluation until the caller's next command.
"""

from __future__ import annotations

import gc
import math
import queue
import shutil
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import PrinterCallback

from dpo_train import export, model, reference
from dpo_train.activation_checkpointing import can_be_checkpointed
from dpo_train.config import TrainConfig
from dpo_train.config_base import override
from dpo_train.errors import OutOfMemory, one_line
from dpo_train.memory import NO_BOUNDS, MemoryBounds, give_back, is_out_of_memory
from dpo_train.scoring.evaluation import Evaluation
from dpo_train.trainers.process_group import SINGLE_PROCESS, ProcessGroup
from dpo_train.trainers.session import fewest_pairs_at_once, with_pairs_at_once
from dpo_train.trainers.trl_arguments import trl_arguments
from dpo_train.trainers.trl_control import HELD, TrainingControl
from dpo_train.trainers.trl_memory import pairs_that_fit, row_lengths
from dpo_train.trainers.trl_trainer import SearchTrainer

_TRAINING = "training by TRL"


class TrlSession:
    """A Session over DPOTrainer. A process has one at a time, because it uses the shared base."""

    def __init__(
        self,
        config: TrainConfig,
        prepared: Path,
        device: str,
        process_group: ProcessGroup = SINGLE_PROCESS,
        memory: MemoryBounds = NO_BOUNDS,
    ) -> None:
        process_group.join()
        self._config = config
        self._process_group = process_group
        self._data = reference.prepare(prepared)
        self.reference_pairs = self._data.computed_pairs
        self._base = model.load_base(config.model, device, prepared)
        self._scratch = Path(tempfile.mkdtemp(prefix="dpo-trial-"))
        self._train_rows = self._data.split("train")
        self.pairs_total = len(self._train_rows) * config.optim.epochs
        rows = self._train_rows[:]
        with model.errors_of_the_model_refused(_TRAINING):
            self._open_and_measure(rows, device, memory)
        # The pairs of one process of a group. A pair is two rows, each padded to the longest.
        pairs = max(1, self.pairs_at_once // process_group.count)
        self.tokens_at_once = 2 * max(row_lengths(rows)) * pairs
        self._thread: threading.Thread | None = None
        self._is_held = True
        """Whether the training thread waits for a command, or has ended."""
        self._early: Evaluation | None = None
        """An evaluation that came while we waited for the end of a step."""
        self._resume_from: Path | None = None

    @property
    def pairs_at_once(self) -> int:
        """Pairs that go through the model in one pass, of all processes of a group together."""
        return self._config.optim.pairs_at_once

    @property
    def pairs_done(self) -> int:
        """Pairs whose gradients are computed, including those of an unfinished step."""
        return self._control.pairs_done

    def advance(self) -> Evaluation:
        """Train to the next evaluation; see Session."""
        evaluation = self.advance_for(math.inf)
        assert evaluation is not None
        return evaluation

    def advance_for(self, seconds: float) -> Evaluation | None:
        """Train to the next evaluation, or for `seconds`; see Session."""
        if self._thread is None:
            self._is_held = False
            self._thread = threading.Thread(target=self._train, daemon=True)
            self._thread.start()
        elif self._is_held and self._early is None:
            self._is_held = False
            self._control.commands.put("advance")
        evaluation: Evaluation | None = self._early or self._answer(seconds)
        self._early = None
        return evaluation

    def save(self, folder: Path) -> int:
        """Write the state at the end of a step; see Session."""
        if self._thread is None:
            return 0
        if not self._is_held:
            self._early = self._hold()
        if self._early is not None:
            return 0
        self._control.commands.put("save")
        checkpoint = self._answer(math.inf)
        # Each process of a group adds its own files, at least its random state.
        shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
        shutil.rmtree(checkpoint)
        self._trainer.save_interval(folder)
        return self._control.pairs_seen

    def restore(self, folder: Path) -> None:
        """Go on from a saved folder; see Session."""
        self._resume_from = folder
        self._trainer.restore_interval(folder)

    def export(self, folder: Path) -> None:
        """Write the weights as a folder that can be served. In a group only rank 0 writes."""
        weights = None
        if self._process_group.sharded:  # all processes gather the weights, and one writes them
            policy = self._trainer.model
            weights = self._trainer.accelerator.get_state_dict(policy)
            for tied in getattr(policy, "all_tied_weights_keys", {}):
                weights.pop(tied, None)
        if self._process_group.rank == 0:
            tokenizer = self._base.tokenizer
            export.write(self._trainer.model, tokenizer, self._config, folder, weights)

    def close(self) -> None:
        """End the training thread, and free the device."""
        if self._thread is not None:
            if not self._is_held:
                with suppress(Exception):  # the thread ended with an error, which nobody needs
                    self._hold()
            self._control.commands.put("stop")
            self._thread.join()
        self._close_trainer()
        del self._base
        if self._process_group.sharded:
            model.forget_base()  # FSDP2 has sharded its weights
        shutil.rmtree(self._scratch, ignore_errors=True)
        gc.collect()
        give_back()

    def _open_and_measure(
        self, rows: dict[str, list[Any]], device: str, memory: MemoryBounds
    ) -> None:
        """Open the trainer with as many pairs at once as fit into memory.

        If not enough fit, and the configuration allows it, switch activation checkpointing on.
        """
        group = self._process_group
        at_once = self._pairs_that_fit(rows, device, memory)
        is_too_little = at_once < fewest_pairs_at_once(self._config, group.count)
        is_left_open = self._config.optim.activation_checkpointing is None
        if is_too_little and is_left_open and can_be_checkpointed(self._trainer.model):
            self._close_trainer()
            self._config = override(self._config, {"optim.activation_checkpointing": True})
            at_once = self._pairs_that_fit(rows, device, memory)
        if at_once < self._config.optim.pairs_at_once:
            self._close_trainer()
            self._config = with_pairs_at_once(self._config, at_once, group.count)
            self._open_trainer(device)

    def _pairs_that_fit(self, rows: dict[str, list[Any]], device: str, memory: MemoryBounds) -> int:
        """Open the trainer, and return the most pairs of a pass; 0 if memory holds none."""
        try:
            self._open_trainer(device)
        except Exception as error:
            model.forget_base()  # the base may hold half of an adapter
            if is_out_of_memory(error):
                raise OutOfMemory(one_line(error)) from None
            raise
        # The first step shards the model. Before it, no device can be measured.
        if self._process_group.sharded:
            return self._config.optim.pairs_at_once
        try:
            return pairs_that_fit(self._trainer, self._config, rows, self._data, memory)
        except BaseException as error:
            if is_out_of_memory(error):
                return 0
            self._close_trainer()  # the base must not keep half of an adapter
            raise

    def _open_trainer(self, device: str) -> None:
        config = self._config
        if config.lora is not None:
            model.refuse_missing_targets(self._base.model, config.lora)
        self._control = TrainingControl(config, len(self._train_rows), self._scratch)
        self._trainer = SearchTrainer(
            model=self._base.fresh(trained_in_full=config.lora is None),
            args=trl_arguments(config, self._scratch, device, self._process_group),
            train_dataset=self._train_rows,
            processing_class=self._base.tokenizer,
            peft_config=model.peft_config(config.lora) if config.lora else None,
            callbacks=[self._control],
        )
        self._trainer.remove_callback(PrinterCallback)  # it would print dicts
        self._trainer.hold(self._control, self._data, device)

    def _close_trainer(self) -> None:
        if self._config.lora is not None:
            self._trainer.model.unload()
        del self._trainer, self._control

    def _hold(self) -> Evaluation | None:
        """Hold the training thread at the end of its step.

        If an evaluation comes first, hold there, and return the evaluation.
        """
        self._control.is_hold_wanted.set()
        answer = self._answer(math.inf)
        self._control.is_hold_wanted.clear()
        return None if answer is HELD else answer

    def _train(self) -> None:
        try:
            resume = str(self._resume_from) if self._resume_from else None
            self._trainer.train(resume_from_checkpoint=resume)
        except BaseException as error:  # the caller's thread raises it
            # The frames of the error keep the tensors that filled the memory, so we raise a new
            # error.
            if is_out_of_memory(error):
                error = OutOfMemory(one_line(error))
            elif not self._control.pairs_seen:  # after a step it is not the model's code
                error = model.as_refusal(error, _TRAINING)
            self._control.answers.put(error)

    def _answer(self, seconds: float) -> Any:
        """Return the training thread's next answer, after which it waits; None after `seconds`.

        Raises the error that ended the thread.
        """
        try:
            answer = self._control.answers.get(timeout=None if seconds == math.inf else seconds)
        except queue.Empty:
            return None
        self._is_held = True
        if isinstance(answer, BaseException):
            raise answer
        return answer
