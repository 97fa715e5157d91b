"""Holds TRL's training thread at evaluations, and on request at the end of a step."""

from __future__ import annotations

import math
import queue
import threading
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from dpo_train.config import TrainConfig

HELD = "held"
"""The answer of the training thread when it holds at the end of a step, as requested."""


class TrainingControl(TrainerCallback):
    """Decides when to evaluate, and holds the training thread until the next command."""

    def __init__(self, config: TrainConfig, train_pairs: int, scratch: Path) -> None:
        self.commands: queue.Queue[str] = queue.Queue()
        self.answers: queue.Queue[Any] = queue.Queue()
        self._next_evaluation = config.next_evaluation
        self._batch_size = config.optim.batch_size
        self._train_pairs = train_pairs
        self._scratch = scratch
        self._evaluated_at = 0
        self.pairs_seen = self.pairs_done = 0
        self.is_hold_wanted = threading.Event()
        self.accelerator: Any = None
        self.carried_seconds, self.carried_pairs = 0.0, 0
        """Seconds and pairs of a restored state since its last evaluation."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock, after a restored state where it stopped."""
        self.pairs_seen = self._evaluated_at = self.pairs(state.global_step)
        self.pairs_done = self.pairs_seen
        if torch.cuda.is_available():
            # The peak must not be that of an earlier trial, or of an attempt that ran out of
            # memory.
            torch.cuda.reset_peak_memory_stats()
        self._resume()
        self.resumed_at -= self.carried_seconds
        self.resumed_pairs -= self.carried_pairs

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count the pairs of a pass."""
        self.pairs_done += args.per_device_train_batch_size * args.world_size

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Request an evaluation if one is due. Otherwise hold here if that was requested."""
        self.pairs_seen = self.pairs_done = self.pairs(state.global_step)
        passed = self.pairs_seen >= self._next_evaluation(self._evaluated_at)
        control.should_evaluate = passed or state.global_step >= state.max_steps
        if control.should_evaluate:
            self._evaluated_at = self.pairs_seen
        elif self._all_hold():
            self.answers.put(HELD)
            self._wait_aside(control)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Answer with the path of the checkpoint, and wait for the next command."""
        self.resumed_at += time.monotonic() - self._save_began
        self.answers.put(str(self._scratch / f"checkpoint-{state.global_step}"))
        self._wait_aside(control)

    def wait(self, control: Any) -> None:
        """Wait for the next command, set the trainer's control flags, and begin a new interval."""
        self._obey(control)
        self._resume()

    def _wait_aside(self, control: Any) -> None:
        """Wait for the next command within an interval. Its clock stops meanwhile."""
        began = time.monotonic()
        self._obey(control)
        self.resumed_at += time.monotonic() - began

    def _obey(self, control: Any) -> None:
        command = self.commands.get()
        self._save_began = time.monotonic()
        control.should_save = command == "save"
        control.should_training_stop = control.should_training_stop or command == "stop"

    def _all_hold(self) -> bool:
        """Return whether training holds after this step. All processes of a group agree on it."""
        wanted = self.is_hold_wanted.is_set()
        if self.accelerator is None or self.accelerator.num_processes == 1:
            return wanted
        wish = torch.tensor(float(wanted), device=self.accelerator.device)
        return bool(self.accelerator.reduce(wish) > 0)

    def _resume(self) -> None:
        self.resumed_at, self.resumed_pairs = time.monotonic(), self.pairs_seen

    def pairs(self, step: int) -> int:
        """Return the pairs trained on after a step. The last batch of an epoch may be smaller."""
        epochs, steps = divmod(step, math.ceil(self._train_pairs / self._batch_size))
        return epochs * self._train_pairs + steps * self._batch_size
