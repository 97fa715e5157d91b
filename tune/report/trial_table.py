"""The table of all trials, as `page.js` sorts, filters and shows it; its rows are also what stands
beside the pointer in the figures."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from dpo_train.scoring import metrics
from tune.report.facts import TRAIN_LOSS, TRAIN_LOSS_MEANING
from tune.run_folder.records import TrialRecord
from tune.run_folder.results import Results
from tune.run_folder.wording import value_text

Cell = str | float | None


class Column(TypedDict):
    name: str
    kind: Literal["rank", "trial", "state", "count", "metric", "axis", "seconds", "error"]
    meaning: str


class TrialTable(TypedDict):
    columns: list[Column]
    rows: list[list[Cell]]
    """In the order of `results.trials`, by whose places figures name a trial."""


def trial_table(results: Results) -> TrialTable:
    """Each trial at its best report: the objective first, the searched axes, then all else."""
    names = _metrics(results)
    paths = list(results.search.get("space", {})) or _axes(results)
    last = [path.rpartition(".")[2] for path in paths]
    labels = [name if last.count(name) == 1 else path
              for path, name in zip(paths, last, strict=True)]  # fmt: skip
    first = [part.metric for part in results.objective.parts]
    meanings = {each.name: each.explained for each in metrics.METRICS}
    meanings[TRAIN_LOSS] = TRAIN_LOSS_MEANING
    rest = [name for name in names if name not in first]

    def metric(name: str) -> Column:
        label = name.removeprefix(metrics.PREFIX).replace(TRAIN_LOSS, "train loss")
        return {"name": label, "kind": "metric", "meaning": meanings.get(name, "")}

    def axis(label: str, path: str) -> Column:
        return {"name": label, "kind": "axis", "meaning": path}

    columns: list[Column] = [
        {"name": "rank", "kind": "rank", "meaning": "the best first, by the rule of the winner"},
        {"name": "trial", "kind": "trial", "meaning": ""},
        {"name": "state", "kind": "state", "meaning": ""},
        {"name": "pairs", "kind": "count", "meaning": "trained on"},
        *map(metric, first),
        *map(axis, labels, paths),
        *map(metric, rest),
        {"name": "seconds", "kind": "seconds", "meaning": "for which it held its place"},
        {"name": "error", "kind": "error", "meaning": ""},
    ]  # fmt: skip
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
    """The names that any report has, in the catalogue's order, the training's own loss last."""
    there = {name for trial in results.trials for name in trial.metrics}
    return [name for name in [*(each.name for each in metrics.METRICS), TRAIN_LOSS]
            if name in there]  # fmt: skip


def _axes(results: Results) -> list[str]:
    return sorted({path for trial in results.trials for path in trial.config})


def _cell(trial: TrialRecord, path: str) -> Cell:
    if path not in trial.config:
        return None
    value: Any = trial.config[path]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return _number(value) if is_number else value_text(value)


def _number(value: float | None) -> float | None:
    """By five digits, as the figures have it."""
    if value is None or isinstance(value, int):
        return value
    return float(f"{value:.5g}")
