"""What became of a task, and how Ray Tune carries it from the worker to the driver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from dpo_train.evaluation.test_report import TestReport
from tune.run_folder.step import Step


class Ending(Enum):
    """Whether the worker's part of a task has ended, and how."""

    GOES_ON = "goes on"
    FINISHED = "finished"
    STOPPED = "stopped"
    """The driver asked it to stop between two reports."""
    FAILED = "failed"
    WRONG_INPUT = "wrong input"
    """What the user gave is wrong: the search ends, and goes on once that is mended."""
    DISK_FULL = "disk full"
    """Or the store refused: the trial goes on from its last saved state in another session."""


@dataclass(frozen=True)
class Outcome:
    """Of one call of a worker's `step`."""

    ending: Ending = Ending.GOES_ON
    error: str = ""
    """Of an ending that is an error."""
    step: Step | None = None
    """Of a trial that was evaluated."""
    test: TestReport | None = None
    """Of a TestTask."""
    evaluation: Mapping[str, float] | None = None
    """Of an EvaluateTask, what the user's function returned."""


_OUTCOME = "outcome"


def to_tune(outcome: Outcome) -> dict[str, Any]:
    """A result as Ray Tune takes it from a Trainable."""
    return {_OUTCOME: outcome, "done": outcome.ending is not Ending.GOES_ON}


def outcome_of(result: Mapping[str, Any]) -> Outcome:
    """What a worker said. Ray Tune ends a trial with an empty result where it stops it itself."""
    outcome: Outcome = result.get(_OUTCOME, Outcome(Ending.STOPPED))
    return outcome
