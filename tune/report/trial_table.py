"""Makes the table of all trials, which `page.js` sorts, filters and shows.

The figures show the same rows beside the pointer.
"""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from dpo_train.scoring import metrics
from tune.report.facts import TRAIN_LOSS, TRAIN_LOSS_MEANING
from tune.run_folder.results import Results
from tune.run_folder.trial_record import TrialRecord
from tune.run_folder.wording import value_text

Cell = str | float | None


class Column(TypedDict):
    """A column of the table."""

    name: str
    kind: Literal["rank", "trial", "state", "count", "metric", "axis", "seconds", "error"]
    meaning: str


class TrialTable(TypedDict):
    """The columns and rows of the table."""

    columns: list[Column]
    rows: list[list[Cell]]
    """One row a trial, in the order of `results.trials`. Figures refer to a trial by its index."""


def trial_table(results: Results) -> TrialTable:
    """Returns the table of all trials at their best reports: objective, axes, then the rest."""
    # The names of metrics and axes.
    names = _metrics(results)
    paths = list(results.search.get("space", {})) or _axes(results)
    last = [path.rpartition(".")[2] for path in paths]
    labels = [name if last.count(name) == 1 else path
              for path, name in zip(paths, last, strict=True)]  # fmt: skip
    first = [objective.metric for objective in results.objective.parts]
    meanings = {each.name: each.explained for each in metrics.METRICS}
    meanings[TRAIN_LOSS] = TRAIN_LOSS_MEANING
    rest = [name for name in names if name not in first]

    def metric(name: str) -> Column:
        label = name.removeprefix(metrics.PREFIX).replace(TRAIN_LOSS, "train loss")
        return {"name": label, "kind": "metric", "meaning": meanings.get(name, "")}

    def axis(label: str, path: str) -> Column:
        return {"name": label, "kind": "axis", "meaning": path}

    # The columns.
    columns: list[Column] = [
        {"name": "rank", "kind": "rank", "meaning": "1 is the best, by the rule of the winner"},
        {"name": "trial", "kind": "trial", "meaning": ""},
        {"name": "state", "kind": "state", "meaning": ""},
        {"name": "pairs", "kind": "count", "meaning": "trained on"},
        *map(metric, first),
        *map(axis, labels, paths),
        *map(metric, rest),
        {"name": "seconds", "kind": "seconds", "meaning": "for which it held its device"},
        {"name": "error", "kind": "error", "meaning": ""},
    ]  # fmt: skip
    # The rows.
    ranks = {trial.id: rank for rank, trial in enumerate(results.ranked(), 1) if trial.metrics}
    rows = [
        [
            ranks.get(trial.id),
            trial.id,
            trial.state,
            trial.pairs_seen,
            *(_number(trial.metrics.get(name)) for name in first),
            *(_cell(trial, path) for path in paths),
            *(_number(trial.metrics.get(name)) for name in rest),
            _number(trial.seconds),
            trial.error,
        ]
        for trial in results.trials
    ]
    return {"columns": columns, "rows": rows}


def _metrics(results: Results) -> list[str]:
    """Returns the metrics that any trial has, in the catalogue's order, the train loss last."""
    measured = {name for trial in results.trials for name in trial.metrics}
    return [name for name in [*(each.name for each in metrics.METRICS), TRAIN_LOSS]
            if name in measured]  # fmt: skip


def _axes(results: Results) -> list[str]:
    return sorted({path for trial in results.trials for path in trial.config})


def _cell(trial: TrialRecord, path: str) -> Cell:
    if path not in trial.config:
        return None
    value: Any = trial.config[path]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return _number(value) if is_number else value_text(value)


def _number(value: float | None) -> float | None:
    """Returns a value rounded to five digits, as in the figures."""
    if value is None or isinstance(value, int):
        return value
    return float(f"{value:.5g}")
