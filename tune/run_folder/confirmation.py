"""What confirming the finalists found: part of `results.json`, and the user's own evaluations."""

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
    """One seed of a finalist."""

    id: str
    seed: int
    value: float | None
    """Of the objective at its best report; None if it failed."""
    error: str | None = None


class Finalist(Document):
    trial: str
    """The trial of the search whose configuration this is."""
    config: Point
    searched: float
    """Of the objective at the trial's best report in the search, by which it became a finalist."""
    runs: list[Run]
    mean: float | None
    """Of the runs; None if one of them failed."""
    drift: float | None
    """Mean `eval/drift` of the runs."""
    second: float | None = None
    """With two objectives the second's mean of the runs."""
    behind: OrNone[Difference] = None
    """Of the winner's mean and this one's, over the held-out pairs; None for the winner and where a
    run failed."""
    sampled_kl: OrNone[SampledKl] = None
    """As the winner's, of this one's best run."""
    evaluation: dict[str, float] = {}
    """What `confirm.evaluate` said of the best run's folder."""

    @property
    def seed_values(self) -> list[str]:
        """Each seed's value, as a person reads it."""
        return ["failed" if run.value is None else f"{run.value:.3f}" for run in self.runs]


class Confirmation(Document):
    winner: str
    """The trial whose configuration won."""
    searched: str
    """The best trial of the search, before its finalists' new seeds."""
    decided_by: str
    tied: list[str] = []
    """Finalists that lie no further behind the winner than luck over prompts explains: zero lies in
    the 95 % interval of the difference."""
    finalists: list[Finalist]
    """The best first."""
    searched_test: Numbers = Numbers()
    """The test split's numbers of `searched`, before its seeds were tried."""


def evaluations(run: RunFolder) -> dict[str, dict[str, float]]:
    """What `confirm.evaluate` said, by the id of the run that it was given."""
    if not run.evaluations.exists():
        return {}
    try:
        return _EVALUATIONS.validate_json(run.evaluations.read_bytes())
    except (OSError, ValueError) as error:
        DamagedFile(run.evaluations, error).warn(sets_aside=False)
        return {}


def keep_evaluation(run: RunFolder, run_id: str, said: Mapping[str, float]) -> None:
    """Kept, for an evaluation may cost more than a trial."""
    write_atomically(
        run.evaluations, json.dumps({**evaluations(run), run_id: dict(said)}, indent=1)
    )


def forget_evaluations(run: RunFolder) -> None:
    """For another function than the one that said them."""
    mirror.remove(run.evaluations)
