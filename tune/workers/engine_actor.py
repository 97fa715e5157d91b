"""The process of an engine, which holds the sessions of a device's packed trials."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_train.config import ModelConfig, TrainConfig
from dpo_train.device_errors import device_failures_named
from dpo_train.errors import DeviceFailed
from dpo_train.evaluation.test_report import TestFolders, TestReport
from dpo_train.scoring.evaluation import Evaluation
from dpo_train.trainers.open import open_session
from dpo_train.trainers.session import Session
from tune.workers.memory_share import memory_bounds
from tune.workers.pulse import SharedTurns
from tune.workers.unused import leave_out_unused


@dataclass(frozen=True)
class Opening:
    """The arguments with which a session is opened."""

    config: TrainConfig
    prepared: Path
    """The folder of the prepared data."""
    device: str
    most_tokens: int | None = None
    """The most tokens of a pass, if a larger pass has run a process out of memory."""


@dataclass(frozen=True)
class Opened:
    """What a trial's own process must know about its session."""

    pairs_total: int
    reference_pairs: int
    tokens_at_once: int


class EngineActor:
    """Holds the sessions of a device's trials. In one process they form one pack."""

    def __init__(self, gpu: str | None, engines: int, trials: int) -> None:
        """`engines` is how many engines share this node's CPUs; `trials` the most trials."""
        leave_out_unused()
        if gpu is not None:
            # Ray gave the GPU to the trials and not to this actor. Torch reads the variable when it
            # is imported, so we set it before.
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
        self._engines, self._trials = engines, trials
        self._sessions: dict[str, Session] = {}
        self._uncounted = 0
        self._opening = threading.Lock()
        self._failure: DeviceFailed | None = None

    def ping(self) -> None:
        """Raise DeviceFailed if the device has failed, so that nothing more can be computed."""
        if self._failure is not None:
            raise self._failure

    @contextmanager
    def _failures_noted(self) -> Iterator[None]:
        """Remember a failure of the GPU, after which every call raises it again."""
        self.ping()
        try:
            with device_failures_named():
                yield
        except DeviceFailed as error:
            self._failure = error
            raise

    def open(self, trial: str, opening: Opening) -> Opened:
        """Open a trial's session, and prepare the data before if that is not done."""
        from dpo_train import reference  # imports torch, slowly

        with (
            self._opening,
            self._failures_noted(),
        ):  # some libraries import late, which fails from two threads, so only one opens at a time
            _one_thread()
            self.close(trial)  # a session may be left from a process of this trial that died
            computed = reference.prepare(opening.prepared, SharedTurns()).computed_pairs
            most = opening.most_tokens
            bounds = memory_bounds(self._engines, self._trials, most_tokens=most)
            session = open_session(opening.config, opening.prepared, opening.device, memory=bounds)
            self._sessions[trial] = session
            counted = self._uncounted + computed + session.reference_pairs
            self._uncounted = 0
        return Opened(session.pairs_total, counted, session.tokens_at_once)

    def open_ahead(self, opening: Opening) -> None:
        """Import and prepare everything before the first trial comes."""
        with suppress(Exception):  # a trial will raise the same error, and report it
            self._uncounted = self.open("", opening).reference_pairs
            self.close("")

    def advance(self, trial: str) -> tuple[Evaluation, int]:
        """Train to the next evaluation. Return it, and the most tokens of a pass by now."""
        _one_thread()
        session = self._sessions[trial]
        with self._failures_noted():
            return session.advance(), session.tokens_at_once

    def pairs_done(self, trial: str) -> int:
        """Return how many pairs a trial has trained on."""
        return self._sessions[trial].pairs_done

    def call(self, trial: str, method: str, *arguments: Any) -> Any:
        """Call a method of a trial's session."""
        with self._failures_noted():
            return getattr(self._sessions[trial], method)(*arguments)

    def close(self, trial: str) -> None:
        """Close a trial's session if there is one."""
        session = self._sessions.pop(trial, None)
        if session is not None and self._failure is None:
            session.close()

    def evaluate_on_test(self, _: str, folders: TestFolders, base: ModelConfig) -> TestReport:
        """Evaluate base and winner on the test split."""
        with self._opening, self._failures_noted():  # the engine may be in `open_ahead` just now
            from dpo_train.evaluation import test_split  # imports torch, slowly

            _one_thread()
            return test_split.evaluate_on_test(folders, base)


def _one_thread() -> None:
    """Limit torch to one thread. Each thread of the actor has its own limit, so each must do it."""
    import torch  # slow to import

    torch.set_num_threads(1)
