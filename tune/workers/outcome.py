"""The outcome of a worker's task, and its form in Ray Tune's results, from worker to driver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from dpo_train.evaluation.test_report import TestReport
from tune.run_folder.step import Step


class Ending(Enum):
    """Whether the worker has ended its task, and how."""

    GOES_ON = "goes on"
    FINISHED = "finished"
    STOPPED = "stopped"
    """The driver requested a stop between two reports."""
    FAILED = "failed"
    WRONG_INPUT = "wrong input"
    """The user's input is wrong: the search ends, and can go on once the input is corrected."""
    DISK_FULL = "disk full"
    """The disk is full, or the store failed: the trial goes on from its last saved state in a later
    driver session."""


@dataclass(frozen=True)
class Outcome:
    """The result of one call of a worker's `step`."""

    ending: Ending = Ending.GOES_ON
    error: str = ""
    """The error's message, if the ending is an error."""
    step: Step | None = None
    """The training up to an evaluation, of a TrainTask."""
    test: TestReport | None = None
    """The result of a TestTask."""
    evaluation: Mapping[str, float] | None = None
    """What the user's function returned, of an EvaluateTask."""


_OUTCOME = "outcome"


def to_tune(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome as a result that Ray Tune takes from a Trainable."""
    return {_OUTCOME: outcome, "done": outcome.ending is not Ending.GOES_ON}


def outcome_of(result: Mapping[str, Any]) -> Outcome:
    """Return the outcome in a result. If Ray Tune itself stops a trial, the result is empty."""
    outcome: Outcome = result.get(_OUTCOME, Outcome(Ending.STOPPED))
    return outcome
