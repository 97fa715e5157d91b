"""What Weights & Biases is told of a search: functions of its configuration and its records.

Knows how W&B spells a sweep and a run, but no client. No local path is among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NotRequired, TypedDict

from pydantic import JsonValue

from dpo_train.errors import InputError
from dpo_train.evaluation.test_report import Numbers
from tune.config.schema import SearchConfig
from tune.config.space import Axis, to_optuna
from tune.run_folder import redact
from tune.run_folder.records import ENDED, TrialRecord
from tune.run_folder.results import Results
from tune.run_folder.yaml_file import flat

_NOT_SETTINGS = ("name", "runs_dir", "space", "points", "trials", "storage",
                 "wandb", "tensorboard", "hub")  # fmt: skip
"""What is no setting of a trial: where and how long one searches, and in which ranges."""
_MAY_BE_PATHS = ("model.id", "data.id")
_DISTRIBUTIONS = {
    "log_uniform": "log_uniform_values",
    "uniform": "uniform",
    "int": "int_uniform",
    "log_int": "q_log_uniform_values",
}


Values = dict[str, JsonValue]
"""By name: a run's settings, or its summary."""


class Parameter(TypedDict):
    """An axis as W&B spells it: `values`, or a distribution with its bounds."""

    values: NotRequired[list[JsonValue]]
    distribution: NotRequired[str]
    min: NotRequired[float]
    max: NotRequired[float]
    q: NotRequired[int]


class Metric(TypedDict):
    name: str
    goal: str


class Controller(TypedDict):
    type: str


class Sweep(TypedDict):
    """What W&B takes as the definition of a sweep."""

    name: str
    method: str
    controller: Controller
    metric: NotRequired[Metric]
    metrics: NotRequired[list[Metric]]
    """In place of `metric`, where there are two objectives."""
    parameters: dict[str, Parameter]


@dataclass(frozen=True)
class Table:
    columns: list[str]
    rows: list[list[JsonValue]]
    """One row a trial, the best first."""


def definition(config: SearchConfig) -> Sweep:
    """The sweep: one whose trials are proposed outside, so no agent is asked for any."""
    metrics: list[Metric] = [
        {"name": part.metric, "goal": f"{part.mode}imize"} for part in config.goal.parts
    ]
    sweep: Sweep = {
        "name": config.name,
        "method": "custom",
        "controller": {"type": "local"},
        "parameters": {path: _parameter(axis) for path, axis in config.space.items()},
    }
    if len(metrics) == 1:
        sweep["metric"] = metrics[0]
    else:
        sweep["metrics"] = metrics
    return sweep


def _parameter(axis: Axis) -> Parameter:
    if axis.choice is not None:
        return {"values": [to_optuna(value) for value in axis.choice]}
    low, high = axis.bounds
    parameter: Parameter = {
        "distribution": _DISTRIBUTIONS[axis.kind],
        "min": low,
        "max": high,
    }
    if axis.kind == "log_int":
        parameter["q"] = 1
    return parameter


def run_config(config: SearchConfig, record: TrialRecord) -> Values:
    """Every setting of a trial by its dotted path; an axis as the sweep's parameter has it."""
    try:
        trial = config.trial(record.config)
    except InputError:  # the combination was impossible, the trial failed of it
        trial = config.base_trial()
    settings = flat(config.model_dump(mode="json") | trial.model_dump(mode="json"))
    settings |= {path: to_optuna(value) for path, value in record.config.items()}
    return {
        path: redact.source(str(value)) if path in _MAY_BE_PATHS else value
        for path, value in settings.items()
        if path.split(".")[0] not in _NOT_SETTINGS
    }


def summary(config: SearchConfig, record: TrialRecord) -> Values:
    """Where a trial ended, and the metrics by which it is ranked: those of its best report."""
    values: Values = {
        "state": record.state if record.state in ENDED else "interrupted",
        "pairs_seen": record.pairs_seen,
    }
    if config.stopping.name == "asha":
        # 0 before the first.
        values["rung"] = max(config.stopping.rungs(record.pairs_seen), default=0)
    if record.metrics:
        values["best_pairs_seen"] = int(record.metrics["pairs_seen"])
        values |= _measured(record.metrics)
    if record.error:
        values["error"] = redact.text(record.error)
    return values


def _measured(report: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in report.items() if name.startswith("eval/")}


def table(config: SearchConfig, results: Results) -> Table:
    axes = list(config.space)
    metrics = sorted({name for trial in results.trials for name in _measured(trial.metrics)})
    rows: list[list[JsonValue]] = [
        [
            trial.id,
            trial.state,
            trial.pairs_seen,
            *(to_optuna(trial.config.get(path)) for path in axes),
            *(trial.metrics.get(name) for name in metrics),
            redact.text(trial.error or ""),
        ]
        for trial in results.ranked()
    ]
    return Table(["trial", "state", "pairs_seen", *axes, *metrics, "error"], rows)


def verdict(results: Results) -> Values:
    """The winner, and how it did on the test split, for the summary of the search."""
    if results.winner is None:
        return {}
    winner = results.winner
    metric = results.objective.metric
    values: Values = {
        "winner": winner.trial,
        "winner_pairs_seen": winner.pairs_seen,
        metric: winner.eval[metric.removeprefix("eval/")],
    }
    for whose, numbers in (("winner", winner.test), ("base", results.base.get("test", Numbers()))):
        values |= {
            f"test/{whose}_{name}": value
            for name, value in numbers.model_dump().items()
            if isinstance(value, int | float)
        }
    return values
