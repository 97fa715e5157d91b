"""Defines `results.json`: what a search found, made from the records when it ends or while it runs.

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
from tune.run_folder.trial_record import STATES, TrialRecord
from tune.run_folder.wording import describe

if TYPE_CHECKING:
    import pandas

_IN_A_NOTEBOOK = 10
"""How many trials a notebook shows."""
_HTML = """
<p><b>{{ results.name }}</b>: {{ results.in_short() }}</p>
<table>
<tr>{% for name in head %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>
{% if more %}<p>… and {{ more }} more in <code>.frame()</code></p>{% endif %}
"""


class Winner(Document):
    """The winner of a search, and its numbers."""

    trial: str
    """The trial of the search whose configuration won."""
    run: str = ""
    """The run whose weights are in winner/: this trial, or one that confirms it."""
    config: Point
    eval: Report
    """The metrics at the report whose weights were exported, without the prefix eval/."""
    pairs_seen: int
    failed: str = ""
    """The error with which its run failed after the report that won; empty if it did not fail."""
    warm_from: str | None = None
    """The trial from whose weights an earlier version started it; None if it started from the base.
    With a value, training its configuration again does not give its numbers."""
    test: Numbers = Numbers()
    """Its numbers on the test split; without metrics if it was not evaluated there."""
    sampled_kl: OrNone[SampledKl] = None
    """Its KL on sampled answers, if eval/drift is an objective
    (dpo_train/evaluation/sampled_kl.py)."""


class Cost(Document):
    """What all runs of a search took together."""

    wall_seconds: float = 0.0
    gpu_seconds: float = 0.0
    pairs_seen: int = 0
    reference_pairs: int = 0


class Publication(Document):
    """Where the winner was pushed to, or why it was not."""

    repo: str
    commit: str = ""
    url: str = ""
    """The address of the repository at that commit."""
    error: str = ""


UNTRAINED = {each.short_name: each.base for each in METRICS if each.base is not None}
"""The base's metrics that hold by definition: it is its own reference, so its log-ratios are 0."""


class Deployment(Document):
    """Where Ray Serve serves the winner, or why it does not."""

    url: str = ""
    error: str = ""


class Results(Document):
    """The content of results.json."""

    schema_: int = 1
    name: str
    objective: Objective
    base: dict[str, Numbers]
    """The base's numbers by split: `ranking` with its interval, and on `test`, once the winner was
    evaluated, the length and repetitions of its answers."""
    winner: Winner | None
    trials: list[TrialRecord]
    """The trials of the search itself."""
    confirmations: list[TrialRecord] = []
    """The finalists' runs with other seeds."""
    confirmation: Confirmation | None = None
    """The comparison of the finalists by these runs."""
    ranking: list[str] = []
    """The ids of the measured trials, the best first by `winner_rule.py`."""
    front: list[str] = []
    """The ids of the trials on the Pareto front of two objectives. Each trial counts by its best
    report in the first objective."""
    luck: Luck | None = None
    """How much of the best value is luck; None before the search has ended."""
    less_drift: LessDrift | None = None
    """The best report near the base, to compare with a winner whose drift is above `MOST_DRIFT`."""
    cost: Cost
    data: dict[str, Any] = {}
    """Pairs in each split, how many rows were left out for each reason, and the key of the prepared
    data. Two searches with the same key have the same pairs and the same base."""
    answers: list[Answer] = []
    """Answers of base and winner to prompts of the test split."""
    ended: str = ""
    """The reason why no more trials started; empty while the search runs."""
    search: dict[str, Any] = {}
    """The resolved configuration: space, stopping, model, data and all other fields of the YAML."""
    environment: dict[str, Any] = {}
    """`python`, `versions` of the libraries, and `hardware`, in Ray's names and amounts."""
    published: Publication | None = None
    """The last push of the winner; None if there was none."""
    served: Deployment | None = None
    """The last deployment of the winner on Ray Serve; None if there was none."""
    _folder: RunFolder = PrivateAttr(default=RunFolder(Path()))

    @property
    def folder(self) -> RunFolder:
        """The run folder where these results were read or written."""
        return self._folder

    def at(self, folder: RunFolder) -> Results:
        """Sets the run folder of these results and returns them."""
        self._folder = folder
        return self

    @property
    def test_of_base(self) -> Numbers | None:
        """The base's numbers on the test split, also those by definition; None if not measured."""
        known = self.base.get("test")
        return known.with_others(UNTRAINED) if known else None

    @property
    def test_of_winner(self) -> Numbers | None:
        """The winner's numbers on the test split; None without a winner or an evaluation."""
        return self.winner.test if self.winner and self.winner.test.metrics else None

    @property
    def runs(self) -> list[TrialRecord]:
        """All trained runs: the trials and the confirmations."""
        return [*self.trials, *self.confirmations]

    def to_json(self) -> str:
        """Returns the content of results.json."""
        content = {"schema": self.schema_, **self.model_dump(exclude={"schema_"})}
        return json.dumps(content, indent=1)

    def ranked(self) -> list[TrialRecord]:
        """Returns the trials, the best first and unmeasured ones last.

        With two objectives they are sorted front by front.
        """
        ranks = {trial: rank for rank, trial in enumerate(self.ranking)}
        if not ranks:  # earlier versions wrote no ranking
            order = self.objective.by_value([trial.metrics for trial in self.trials])
            return [self.trials[index] for index in order]
        return sorted(self.trials, key=lambda trial: ranks.get(trial.id, len(ranks)))

    def best(self) -> TrialRecord | None:
        """Returns the best trial; None if none was measured, or none may win."""
        best = next(iter(self.ranked()), None)
        return best if best and self.objective.allows(best.metrics) else None

    def describe_front(self) -> str:
        """Returns how many trials are on the front and how the winner was chosen among them.

        Empty with one objective.
        """
        first = self.objective
        if first.second is None:
            return ""
        size = f"{len(self.front)} of {len(self.trials)} trials"
        front = f"the Pareto front of {first.text}: {size}"
        if self.confirmation is not None:
            count = len(self.confirmation.finalists)
            return f"{front}; the winner is one of {count} finalists, trained again"
        return f"{front}; the winner is the one with the best {first.metric}"

    def state_counts(self) -> str:
        """Returns the number of trials in each state, like `11 finished, 13 stopped`."""
        counts = Counter(trial.state for trial in self.trials)
        return ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])

    def in_short(self) -> str:
        """Returns one line, like `11 finished, 13 stopped; winner a-018: learning_rate=1e-4,
        eval/accuracy 0.983`."""
        if self.winner is None:
            return f"{self.state_counts()}; no winner"
        metric = self.objective.metric
        value = self.winner.eval[metric.removeprefix("eval/")]
        won = f"winner {self.winner.trial}: {describe(self.winner.config)}, {metric} {value:.3f}"
        return f"{self.state_counts()}; {won}"

    def __repr__(self) -> str:
        return f"<Results of {self.name} in {self.folder}: {self.in_short()}>"

    __str__ = __repr__

    def _repr_html_(self) -> str:
        """Returns the best trials as a table for a notebook."""
        from jinja2 import Environment  # only a notebook needs it

        names = [objective.metric for objective in self.objective.parts]
        rows = [
            [
                trial.id,
                trial.state,
                trial.pairs_seen,
                trial.pairs_at_best_report,
                *(f"{trial.metrics[name]:.3f}" if trial.metrics else "" for name in names),
                describe(trial.config),
            ]
            for trial in self.ranked()[:_IN_A_NOTEBOOK]
        ]
        return (
            Environment(autoescape=True)
            .from_string(_HTML)
            .render(
                results=self,
                head=["trial", "state", "pairs trained", "at best report", *names, "config"],
                rows=rows,
                more=max(0, len(self.trials) - _IN_A_NOTEBOOK),
            )
        )

    def columns(self) -> list[str]:
        """Returns the names of `rows`: axes by dotted path, metrics of the best report."""
        axes = sorted({path for trial in self.trials for path in trial.config})
        metrics = {name for trial in self.trials for name in trial.metrics} - {"pairs_seen"}
        pairs = ["pairs_trained", "pairs_at_best_report"]
        return ["id", "state", *pairs, *axes, *sorted(metrics), "seconds", "error"]

    def rows(self) -> list[dict[str, Any]]:
        """Returns one dict a trial, by `columns`, without inactive axes and missing metrics."""
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
        """Returns the table of `dpo-tune show --csv` as a data frame."""
        import pandas  # slow to import

        return pandas.DataFrame(self.rows(), columns=self.columns())


def write_results(path: Path, results: Results) -> None:
    """Writes results.json."""
    write_atomically(path, results.to_json())


def load_results(run: RunLike) -> Results:
    """Returns the results of a run folder, or of a name under `runs/`. Raises InputError."""
    folder = find_run(run)
    if not folder.results_json.is_file():
        command = dpo_tune("resume", folder.argument)
        raise InputError(f"{folder}: the search has no results yet; type `{command}` to finish it")
    found = read_results(folder)
    if isinstance(found, DamagedFile):
        command = dpo_tune("resume", folder.argument)
        raise found.refusal(f"type `{command}` to make it again")
    return found


def read_results(folder: RunFolder) -> Results | DamagedFile:
    """Returns the results of a run folder that has results.json, or the damaged file."""
    try:
        content = json.loads(folder.results_json.read_bytes())
        return Results.model_validate({**content, "schema_": content["schema"]}).at(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return DamagedFile(folder.results_json, error)
