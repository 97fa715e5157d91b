"""The session of a packed trial in the trial's own light process: it passes every call on to the
engine of its device.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError

from dpo_train.config import ModelConfig
from dpo_train.errors import one_line
from dpo_train.evaluation.test_report import TestFolders, TestReport
from dpo_train.memory import kernel_kills
from dpo_train.scoring.evaluation import Evaluation
from tune.errors import EngineLost, EngineOutOfMemory
from tune.workers.engine_actor import Opened, Opening
from tune.workers.pulse import find_coordinator


class EngineSession:
    """A Session that trains in the engine of this process's device.

    Raises what the engine's session raises, such as DeviceFailed, and EngineLost.
    """

    def __init__(self, trial: str, opening: Opening) -> None:
        self._engine = _Engine(trial)
        try:
            opened: Opened = self._engine.ask("open", opening)
        except BaseException:
            self._engine.leave()
            raise
        self.pairs_total, self.reference_pairs = opened.pairs_total, opened.reference_pairs
        self.tokens_at_once = opened.tokens_at_once
        self.pairs_at_once = opening.config.optim.pairs_at_once
        self.pairs_done = 0
        self._advancing: Any = None

    def advance(self) -> Evaluation:
        """Train to the next evaluation and return it."""
        evaluation = self.advance_for(math.inf)
        assert evaluation is not None
        return evaluation

    def advance_for(self, seconds: float) -> Evaluation | None:
        """Train towards the next evaluation; return None if it is not reached in `seconds`."""
        if self._advancing is None:
            self._advancing = self._engine.begin("advance")
        if not self._engine.is_done(self._advancing, seconds):
            self.pairs_done = self._engine.ask("pairs_done")
            return None
        answer, self._advancing = self._advancing, None
        evaluation: Evaluation
        evaluation, self.tokens_at_once = self._engine.result(answer)
        self.pairs_done = evaluation.pairs_seen
        return evaluation

    def save(self, folder: Path) -> int:
        """Save the trial's state into a folder; return its pairs."""
        saved: int = self._engine.ask("call", "save", folder)
        return saved

    def restore(self, folder: Path) -> None:
        """Restore the state of a folder."""
        self._engine.ask("call", "restore", folder)

    def export(self, folder: Path) -> None:
        """Write the weights into a folder."""
        self._engine.ask("call", "export", folder)

    def close(self) -> None:
        """Leave the engine."""
        self._engine.begin("close")  # it may wait for a running pass, so we don't wait for it
        self._engine.leave()


def evaluate_on_test(folders: TestFolders, base: ModelConfig) -> TestReport:
    """Evaluate base and winner on the test split in an engine, where the base is already loaded."""
    engine = _Engine("test-split")
    try:
        report: TestReport = engine.ask("evaluate_on_test", folders, base)
        return report
    finally:
        engine.leave()


class _Engine:
    """The engine of the device that Ray gave to this process. Raises EngineLost."""

    def __init__(self, trial: str) -> None:
        self._trial = trial
        self._kills_before = kernel_kills()
        context = ray.get_runtime_context()
        gpus = context.get_accelerator_ids().get("GPU", [])
        node, gpu = context.get_node_id(), gpus[0] if gpus else None
        self._coordinator = find_coordinator()
        if self._coordinator is None:
            raise EngineLost(f"no engine was given to {trial}: there is no coordinator")
        try:
            self._actor = ray.get(self._coordinator.enter.remote(trial, node, gpu))
        except RayError as error:
            raise EngineLost(f"no engine was given to {trial}: {one_line(error)}") from error

    def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method of the engine and wait for what it returns."""
        return self.result(self.begin(method, *arguments))

    def begin(self, method: str, *arguments: Any) -> Any:
        """Call a method of the engine without waiting; return the future answer."""
        return getattr(self._actor, method).remote(self._trial, *arguments)

    def is_done(self, answer: Any, seconds: float) -> bool:
        """Wait at most `seconds`, and return whether the answer has come."""
        ready, _ = ray.wait([answer], timeout=None if seconds == math.inf else seconds)
        return bool(ready)

    def result(self, answer: Any) -> Any:
        """Wait for an answer and return it, or raise what the engine raised."""
        try:
            return ray.get(answer)
        except RayTaskError as error:
            raise error.cause from None
        except OutOfMemoryError as error:  # this is not a RayActorError
            raise EngineOutOfMemory(f"Ray's memory monitor ended {self._name}") from error
        except RayActorError as error:
            if kernel_kills() > self._kills_before:
                raise EngineOutOfMemory(f"the kernel ended {self._name}") from error
            raise EngineLost(f"{self._name} died") from error

    @property
    def _name(self) -> str:
        return f"the engine of {self._trial}"

    def leave(self) -> None:
        """Tell the broker that the trial no longer uses this engine."""
        self._coordinator.leave.remote(self._trial)
