"""The tasks of a worker. Ray Tune carries a task as the configuration of its trial."""

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
    """The run folder as every node knows it: a path or a URL."""
    point: Point
    confirms: str | None = None
    """For a finalist's run, the trial whose configuration is trained again."""
    micro_batch: int | None = None
    """Pairs at once, if a whole batch has not fitted into memory before."""
    most_tokens: int | None = None
    """The most tokens of a pass, if a larger pass has run a process out of memory."""
    at_once: int | None = None
    """The most trials that train at the same time."""

    @property
    def name(self) -> str:
        """The name of the Ray Tune trial."""
        return self.trial


@dataclass(frozen=True)
class EvaluateTask:
    """Call the user's own evaluation function with the export of a finalist."""

    trial: str
    run: str
    exported: str
    """The folder of the export, relative to the run folder."""
    working_directory: str
    """The folder from which the user's module is imported."""
    allowed_packages: tuple[str, ...] = ()
    """Installed packages that `--allow-code` allows."""

    @property
    def name(self) -> str:
        """The name of the Ray Tune trial."""
        return f"evaluating-{self.trial}"


@dataclass(frozen=True)
class TestTask:
    """Evaluate base and winner on the test split."""

    run: str
    searched: str | None = None
    """The export of the search's best trial, relative to the run folder, if another one won."""
    sampled: Mapping[str, str] = field(default_factory=dict)
    """By configuration, the exports whose KL from the base is estimated."""

    @property
    def name(self) -> str:
        """The name of the Ray Tune trial."""
        return "test-split"


Task = TrainTask | EvaluateTask | TestTask


def to_tune(task: Task) -> dict[str, Task]:
    """Return a task as the configuration of a Ray Tune trial."""
    return {"task": task}


def task_of(config: Mapping[str, Any]) -> Task:
    """Return the task in the configuration of a Ray Tune trial."""
    task: Task = config["task"]
    return task
