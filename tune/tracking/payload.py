"""What Weights & Biases is told of a search: functions of its configuration and its records.

Knows the words of a sweep and of a run, but no client. No local path is among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpo_train.errors import InputError
from tune.config.schema import SearchConfig
from tune.config.space import Axis, to_optuna
from tune.publish import redact
from tune.run_folder.records import ENDED, TrialRecord
from tune.run_folder.results import Results
from tune.run_folder.yaml_file import flat

_NOT_SETTINGS = ("name", "runs_dir", "space", "points", "trials", "storage", "wandb", "hub")
"""What is no setting of a trial: where and how long one searches, and in which ranges."""
_MAY_BE_PATHS = ("model.id", "data.id")
_DISTRIBUTIONS = {
    "log_uniform": "log_uniform_values",
    "uniform": "uniform",
    "int": "int_uniform",
    "log_int": "q_log_uniform_values",
}


def definition(config: SearchConfig) -> dict[str, Any]:
    """The sweep: one whose trials are proposed outside, so no agent is asked for any."""
    return {
        "name": config.name,
        "method": "custom",
        "controller": {"type": "local"},
        # W&B knows one; of two the first.
        "metric": {"name": config.goal.metric, "goal": f"{config.goal.mode}imize"},
        "parameters": {path: _parameter(axis) for path, axis in config.space.items()},
    }


def _parameter(axis: Axis) -> dict[str, Any]:
    if axis.choice is not None:
        return {"values": [to_optuna(value) for value in axis.choice]}
    low, high = axis.bounds
    steps = {"q": 1} if axis.kind == "log_int" else {}
    return {"distribution": _DISTRIBUTIONS[axis.kind], "min": low, "max": high, **steps}


def run_config(config: SearchConfig, record: TrialRecord) -> dict[str, Any]:
    """Every setting of a trial by its dotted path; an axis as the sweep's parameter has it."""
    try:
        trial = config.trial(record.config)
    except InputError:  # the combination was impossible, the trial failed of it
        trial = config.base_trial()
    told = flat(config.model_dump(mode="json") | trial.model_dump(mode="json"))
    told |= {path: to_optuna(value) for path, value in record.config.items()}
    return {
        path: redact.source(str(value)) if path in _MAY_BE_PATHS else value
        for path, value in told.items()
        if path.split(".")[0] not in _NOT_SETTINGS
    }


def summary(config: SearchConfig, record: TrialRecord) -> dict[str, Any]:
    """Where a trial ended, and the metrics by which it is ranked: those of its best report."""
    told: dict[str, Any] = {
        "state": record.state if record.state in ENDED else "interrupted",
        "pairs_seen": record.pairs_seen,
    }
    if config.stopping.name == "asha":
        # 0 before the first.
        told["rung"] = max(config.stopping.rungs(record.pairs_seen), default=0)
    if record.metrics:
        told["best_pairs_seen"] = int(record.metrics["pairs_seen"])
        told |= _measured(record.metrics)
    if record.error:
        told["error"] = redact.text(record.error)
    return told


def _measured(report: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in report.items() if name.startswith("eval/")}


def table(config: SearchConfig, results: Results) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of the results, one row a trial, the best first."""
    axes = list(config.space)
    metrics = sorted({name for trial in results.trials for name in _measured(trial.metrics)})
    rows = [
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
    return ["trial", "state", "pairs_seen", *axes, *metrics, "error"], rows


def verdict(results: Results) -> dict[str, Any]:
    """The winner, and how it did on the test split, for the summary of the search."""
    if results.winner is None:
        return {}
    winner = results.winner
    metric = results.objective.metric
    told = {
        "winner": winner.trial,
        "winner_pairs_seen": winner.pairs_seen,
        metric: winner.eval[metric.removeprefix("eval/")],
    }
    for whose, numbers in (("winner", winner.test), ("base", results.base.get("test", {}))):
        told |= {
            f"test/{whose}_{name}": value
            for name, value in numbers.items()
            if isinstance(value, int | float)
        }
    return told
