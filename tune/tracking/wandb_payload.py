"""Makes what is sent to Weights & Biases from a search's configuration and records.

Knows W&B's format of a sweep and a run, but no client. It sends no local path.
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
from tune.run_folder.results import Results
from tune.run_folder.trial_record import ENDED, TrialRecord
from tune.run_folder.yaml_file import flat

_NOT_SETTINGS = ("name", "runs_dir", "space", "points", "trials", "storage",
                 "wandb", "tensorboard", "hub")  # fmt: skip
"""Fields that are no settings of a trial: the search space, its length, and its outputs."""
_MAY_BE_PATHS = ("model.id", "data.id")
_DISTRIBUTIONS = {
    "log_uniform": "log_uniform_values",
    "uniform": "uniform",
    "int": "int_uniform",
    "log_int": "q_log_uniform_values",
}


Values = dict[str, JsonValue]
"""A run's settings or summary, by name."""


class Parameter(TypedDict):
    """An axis in W&B's format: `values`, or a distribution with its bounds."""

    values: NotRequired[list[JsonValue]]
    distribution: NotRequired[str]
    min: NotRequired[float]
    max: NotRequired[float]
    q: NotRequired[int]


class Metric(TypedDict):
    """An objective in W&B's format."""

    name: str
    goal: str


class Controller(TypedDict):
    """The program that proposes a sweep's trials."""

    type: str


class Sweep(TypedDict):
    """The definition of a sweep in W&B's format."""

    name: str
    method: str
    controller: Controller
    metric: NotRequired[Metric]
    metrics: NotRequired[list[Metric]]
    """Replaces `metric` if there are two objectives."""
    parameters: dict[str, Parameter]


@dataclass(frozen=True)
class Table:
    """The table of all trials."""

    columns: list[str]
    rows: list[list[JsonValue]]
    """One row a trial, the best first."""


def definition(config: SearchConfig) -> Sweep:
    """Returns the definition of the sweep. The search proposes its trials, and no W&B agent."""
    metrics: list[Metric] = [
        {"name": objective.metric, "goal": f"{objective.mode}imize"}
        for objective in config.goal.parts
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
    """Returns the settings of a trial by dotted path, with axes in the format of the sweep."""
    try:
        trial = config.trial(record.config)
    except InputError:  # the trial failed because its combination of values is impossible
        trial = config.base_trial()
    settings = flat(config.model_dump(mode="json") | trial.model_dump(mode="json"))
    settings |= {path: to_optuna(value) for path, value in record.config.items()}
    return {
        path: redact.source(str(value)) if path in _MAY_BE_PATHS else value
        for path, value in settings.items()
        if path.split(".")[0] not in _NOT_SETTINGS
    }


def summary(config: SearchConfig, record: TrialRecord) -> Values:
    """Returns the summary of a trial: its end, and the metrics of its best report."""
    values: Values = {
        "state": record.state if record.state in ENDED else "interrupted",
        "pairs_seen": record.pairs_seen,
    }
    if config.stopping.name == "asha":
        # The last rung that it reached; 0 before the first one.
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
    """Returns the table of all trials."""
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
    """Returns the winner and its numbers on the test split, for the summary of the search."""
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
