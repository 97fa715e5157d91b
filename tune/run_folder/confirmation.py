"""Defines what confirming the finalists found, and stores the values of the user's evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pydantic import TypeAdapter

from dpo_train.evaluation.test_report import Difference, Numbers, SampledKl
from dpo_train.storage import mirror
from dpo_train.storage.files import write_atomically
from tune.config.space import Point
from tune.run_folder.damaged import DamagedFile
from tune.run_folder.document import Document, OrNone
from tune.run_folder.paths import RunFolder

_EVALUATIONS = TypeAdapter(dict[str, dict[str, float]])


class Run(Document):
    """One run of a finalist with another seed."""

    id: str
    seed: int
    value: float | None
    """The objective at its best report; None if it failed."""
    error: str | None = None


class Finalist(Document):
    """A configuration that was trained again with other seeds."""

    trial: str
    """The trial of the search that had this configuration."""
    config: Point
    searched: float
    """The objective at the best report of that trial, by which it became a finalist."""
    runs: list[Run]
    mean: float | None
    """Mean objective of the runs; None if one of them failed."""
    drift: float | None
    """Mean `eval/drift` of the runs."""
    second: float | None = None
    """With two objectives, the mean of the second one."""
    behind: OrNone[Difference] = None
    """The winner's mean minus this one's, pair by pair; None for the winner and if a run failed."""
    sampled_kl: OrNone[SampledKl] = None
    """The KL of the best run on sampled answers, like the winner's."""
    evaluation: dict[str, float] = {}
    """The values that `confirm.evaluate` returned for the best run."""

    @property
    def seed_values(self) -> list[str]:
        """The value of each run as text."""
        return ["failed" if run.value is None else f"{run.value:.3f}" for run in self.runs]


class Confirmation(Document):
    """How the finalists compare."""

    winner: str
    """The trial whose configuration won."""
    searched: str
    """The best trial of the search before the confirmation."""
    decided_by: str
    tied: list[str] = []
    """Finalists whose distance to the winner may be luck: its 95 % interval contains zero."""
    finalists: list[Finalist]
    """The finalists, the best first."""
    searched_test: Numbers = Numbers()
    """The numbers of `searched` on the test split, from its run in the search."""


def evaluations(run: RunFolder) -> dict[str, dict[str, float]]:
    """Returns the stored values of `confirm.evaluate`, by the id of the evaluated run."""
    if not run.evaluations.exists():
        return {}
    try:
        return _EVALUATIONS.validate_json(run.evaluations.read_bytes())
    except (OSError, ValueError) as error:
        DamagedFile(run.evaluations, error).warn(sets_aside=False)
        return {}


def keep_evaluation(run: RunFolder, run_id: str, values: Mapping[str, float]) -> None:
    """Stores the values of one run, since an evaluation may cost more than a trial."""
    write_atomically(
        run.evaluations, json.dumps({**evaluations(run), run_id: dict(values)}, indent=1)
    )


def forget_evaluations(run: RunFolder) -> None:
    """Removes the stored values, because the user's function has changed."""
    mirror.remove(run.evaluations)
