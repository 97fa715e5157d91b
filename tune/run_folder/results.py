"""What a search found: `results.json`, made from the records when it ends, and while it runs.

Knows no Ray and no Optuna.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import PrivateAttr

from dpo_train.command_line import dpo_tune
from dpo_train.errors import InputError
from dpo_train.evaluation.test_report import Answer, Numbers, SampledKl
from dpo_train.scoring.metrics import METRICS
from dpo_train.storage.files import write_atomically
from tune.config.objective import Objective, Report
from tune.config.space import Point
from tune.run_folder.confirmation import Confirmation
from tune.run_folder.damaged import DamagedFile
from tune.run_folder.document import Document, OrNone
from tune.run_folder.folder import find_run
from tune.run_folder.less_drift import LessDrift
from tune.run_folder.luck import Luck
from tune.run_folder.paths import RunFolder, RunLike
from tune.run_folder.records import STATES, TrialRecord
from tune.run_folder.wording import describe

if TYPE_CHECKING:
    import pandas

_IN_A_NOTEBOOK = 10
"""Trials that a notebook shows of results."""
_HTML = """
<p><b>{{ results.name }}</b>: {{ results.in_short() }}</p>
<table>
<tr>{% for name in head %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>
{% if more %}<p>… and {{ more }} more in <code>.frame()</code></p>{% endif %}
"""


class Winner(Document):
    trial: str
    """The trial of the search whose configuration won."""
    run: str = ""
    """The run whose weights lie in winner/: that trial, or one that confirms it."""
    config: Point
    eval: Report
    """The metrics at the report whose weights were exported, without the prefix eval/."""
    pairs_seen: int
    failed: str = ""
    """Why its run failed after the report that won; empty if it did not."""
    warm_from: str | None = None
    """The trial from whose weights an earlier version started it, if not from the base's: its
    configuration alone does not give its numbers."""
    test: Numbers = Numbers()
    """On the test split; without metrics where it was not evaluated."""
    sampled_kl: OrNone[SampledKl] = None
    """Where eval/drift is an objective (dpo_train/evaluation/sampled_kl.py)."""


class Cost(Document):
    wall_seconds: float = 0.0
    gpu_seconds: float = 0.0
    pairs_seen: int = 0
    reference_pairs: int = 0


class Publication(Document):
    """Where the winner was pushed to, or why it was not."""

    repo: str
    commit: str = ""
    url: str = ""
    """Of the repository at that commit."""
    error: str = ""


UNTRAINED = {each.short_name: each.base for each in METRICS if each.base is not None}
"""What the base would report: it is its own reference, so all its log-ratios are 0."""


class Deployment(Document):
    """Where Ray Serve answers with the winner, or why it does not."""

    url: str = ""
    error: str = ""


class Results(Document):
    """The content of results.json."""

    schema_: int = 1
    name: str
    objective: Objective
    base: dict[str, Numbers]
    """By split what the base has: `ranking` and its interval, and on `test`, once the winner was
    evaluated, what its answers are like."""
    winner: Winner | None
    trials: list[TrialRecord]
    """Of the search itself."""
    confirmations: list[TrialRecord] = []
    """The finalists' runs with other seeds."""
    confirmation: Confirmation | None = None
    """How the finalists compare by them."""
    ranking: list[str] = []
    """The trials that were measured, the best first by `winner_rule.py`."""
    front: list[str] = []
    """With two objectives the trials that no other beats in one without losing in the other, each
    at its best report: by the first, of which the second is what it had there."""
    luck: Luck | None = None
    """How much of the best number is luck, once the search has ended."""
    less_drift: LessDrift | None = None
    """Where the winner's drift is above `MOST_DRIFT` and no bound was asked for."""
    cost: Cost
    data: dict[str, Any] = {}
    """Pairs in each split, how many rows each reason left out, and the key of the prepared data:
    numbers of two searches are of the same pairs and base if it is the same."""
    answers: list[Answer] = []
    """Of base and winner to prompts of the test split."""
    ended: str = ""
    """Why no more trials started."""
    search: dict[str, Any] = {}
    """The configuration as resolved: space, stopping, model, data and all else of the YAML."""
    environment: dict[str, Any] = {}
    """`python`, `versions` of the libraries, and `hardware`: amounts by name, as Ray counts."""
    published: Publication | None = None
    """The last push of the winner, if one was tried."""
    served: Deployment | None = None
    """What Ray Serve was last asked to do with the winner."""
    _folder: RunFolder = PrivateAttr(default=RunFolder(Path()))

    @property
    def folder(self) -> RunFolder:
        """Where these results were read or written."""
        return self._folder

    @property
    def place(self) -> str:
        """The same as a person types it: a URL, if the run stands there."""
        return str(self._folder)

    def at(self, folder: RunFolder) -> Results:
        self._folder = folder
        return self

    @property
    def test_of_base(self) -> Numbers | None:
        """The base on the test split, with what holds of it by definition; None if that was not
        measured."""
        known = self.base.get("test")
        return known.with_others(UNTRAINED) if known else None

    @property
    def test_of_winner(self) -> Numbers | None:
        """None if it was not evaluated, or there is none."""
        return self.winner.test if self.winner and self.winner.test.metrics else None

    @property
    def runs(self) -> list[TrialRecord]:
        """All that was trained."""
        return [*self.trials, *self.confirmations]

    def to_json(self) -> str:
        content = {"schema": self.schema_, **self.model_dump(exclude={"schema_"})}
        return json.dumps(content, indent=1)

    def ranked(self) -> list[TrialRecord]:
        """The best trial first, those that were not measured last; with two objectives front by
        front."""
        place = {trial: number for number, trial in enumerate(self.ranking)}
        if not place:  # earlier versions wrote no order
            order = self.objective.by_value([trial.metrics for trial in self.trials])
            return [self.trials[index] for index in order]
        return sorted(self.trials, key=lambda trial: place.get(trial.id, len(place)))

    def best(self) -> TrialRecord | None:
        """The first of them, if one was measured and may win."""
        best = next(iter(self.ranked()), None)
        return best if best and self.objective.allows(best.metrics) else None

    def about_front(self) -> str:
        """How many trials lie on the front, and how one of them is taken; empty with one
        objective."""
        first = self.objective
        if first.second is None:
            return ""
        told = f"the Pareto front of {first.text}: {len(self.front)} of {len(self.trials)} trials"
        if self.confirmation is not None:
            count = len(self.confirmation.finalists)
            return f"{told}; the winner is one of {count} finalists, trained again"
        return f"{told}; the winner is the best of it in {first.metric}"

    def counted(self) -> str:
        """For example `11 finished, 13 stopped`."""
        counts = Counter(trial.state for trial in self.trials)
        return ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])

    def in_short(self) -> str:
        """For example `11 finished, 13 stopped; winner a-018: learning_rate=1e-4, eval/accuracy
        0.983`."""
        if self.winner is None:
            return f"{self.counted()}; no winner"
        metric = self.objective.metric
        value = self.winner.eval[metric.removeprefix("eval/")]
        won = f"winner {self.winner.trial}: {describe(self.winner.config)}, {metric} {value:.3f}"
        return f"{self.counted()}; {won}"

    def __repr__(self) -> str:
        return f"<Results of {self.name} in {self.place}: {self.in_short()}>"

    __str__ = __repr__

    def _repr_html_(self) -> str:
        """In a notebook the best trials, not all that is known of them."""
        from jinja2 import Environment  # only a notebook needs it

        parts = self.objective.parts
        rows = [
            [
                trial.id,
                trial.state,
                trial.pairs_seen,
                trial.pairs_at_best_report,
                *(f"{trial.metrics[p.metric]:.3f}" if trial.metrics else "" for p in parts),
                describe(trial.config),
            ]
            for trial in self.ranked()[:_IN_A_NOTEBOOK]
        ]
        metrics = [part.metric for part in parts]
        return (
            Environment(autoescape=True)
            .from_string(_HTML)
            .render(
                results=self,
                head=["trial", "state", "pairs trained", "at best report", *metrics, "config"],
                rows=rows,
                more=max(0, len(self.trials) - _IN_A_NOTEBOOK),
            )
        )

    def columns(self) -> list[str]:
        """Names of a trial's values in one row: axes by dotted path, metrics at its best report."""
        axes = sorted({path for trial in self.trials for path in trial.config})
        metrics = {name for trial in self.trials for name in trial.metrics} - {"pairs_seen"}
        pairs = ["pairs_trained", "pairs_at_best_report"]
        return ["id", "state", *pairs, *axes, *sorted(metrics), "seconds", "error"]

    def rows(self) -> list[dict[str, Any]]:
        """One dict a trial, by `columns`; inactive axes and what was not measured are left out."""
        return [
            {
                "id": trial.id,
                "state": trial.state,
                "pairs_trained": trial.pairs_seen,
                "pairs_at_best_report": trial.pairs_at_best_report,
                **trial.config,
                **{name: value for name, value in trial.metrics.items() if name != "pairs_seen"},
                "seconds": round(trial.seconds, 3),
                "error": trial.error,
            }
            for trial in self.trials
        ]

    def frame(self) -> pandas.DataFrame:
        """The same as `dpo-tune show --csv`, for a notebook."""
        import pandas  # slow to import

        return pandas.DataFrame(self.rows(), columns=self.columns())


def write_results(path: Path, results: Results) -> None:
    write_atomically(path, results.to_json())


def load_results(run: RunLike) -> Results:
    """The results of a run folder, or of a name under `runs/`. Raises InputError."""
    folder = find_run(run)
    if not folder.results_json.is_file():
        command = dpo_tune("resume", folder.argument)
        raise InputError(f"{folder}: the search has no results yet; type `{command}` to finish it")
    found = read_results(folder)
    if isinstance(found, DamagedFile):
        command = dpo_tune("resume", folder.argument)
        raise found.refusal(f"type `{command}` to make it anew")
    return found


def read_results(folder: RunFolder) -> Results | DamagedFile:
    """The results of a run folder that has some."""
    try:
        content = json.loads(folder.results_json.read_bytes())
        return Results.model_validate({**content, "schema_": content["schema"]}).at(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return DamagedFile(folder.results_json, error)
