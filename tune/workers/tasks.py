"""What a worker is given to do. Ray Tune carries a task as the configuration of its trial."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tune.config.space import Point


@dataclass(frozen=True)
class TrainTask:
    """Train a trial of the search, or a finalist once more with another seed."""

    trial: str
    run: str
    """The run folder, as every node knows it: a path or a URL."""
    point: Point
    confirms: str | None = None
    """The trial whose configuration is trained once more."""
    micro_batch: int | None = None
    """Pairs at once, where memory did not hold a whole batch before."""
    most_tokens: int | None = None
    """The most tokens of a pass, where one with more ended a process for lack of memory."""
    at_once: int | None = None
    """Trials that train at the same time, at most."""

    @property
    def name(self) -> str:
        return self.trial


@dataclass(frozen=True)
class EvaluateTask:
    """Call the user's own evaluation with the export of a finalist."""

    trial: str
    run: str
    exported: str
    """The folder of the export, relative to the run folder."""
    working_directory: str
    """From where the user's module is imported."""
    allowed_packages: tuple[str, ...] = ()
    """Installed packages that the command line allows to run."""

    @property
    def name(self) -> str:
        return f"evaluating-{self.trial}"


@dataclass(frozen=True)
class TestTask:
    """Evaluate base and winner on the test split."""

    run: str
    searched: str | None = None
    """The best export of the search, relative to the run folder, where the winner is another."""
    sampled: Mapping[str, str] = field(default_factory=dict)
    """By configuration the exports whose KL from the base is estimated."""

    @property
    def name(self) -> str:
        return "test-split"


Task = TrainTask | EvaluateTask | TestTask


def to_tune(task: Task) -> dict[str, Task]:
    """The configuration of a trial of Ray Tune."""
    return {"task": task}


def task_of(config: Mapping[str, Any]) -> Task:
    """What `to_tune` put there."""
    task: Task = config["task"]
    return task
