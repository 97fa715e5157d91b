"""Facts that report and model card share: the winner in one sentence, its configuration, what was
searched and how, and what early stopping saved."""

from __future__ import annotations

import io
from typing import NamedTuple

from ruamel.yaml import YAML

from dpo_train.config import TrainConfig
from dpo_train.config_base import override
from dpo_train.evaluation.test_report import Numbers
from tune.config.space import Axis, Point
from tune.run_folder.results import Results
from tune.run_folder.wording import value_text

TRAIN_LOSS = "train/loss"
TRAIN_LOSS_MEANING = "the trial's own loss on the pairs that it trained on since the report before"


def verdict(results: Results) -> str:
    """Returns a sentence on whether the winner beats the base on the test split.

    Their difference pair by pair decides. Empty if the winner was not evaluated there.
    """
    base, test = results.test_of_base, results.test_of_winner
    if base is None or test is None:
        return ""
    sentence = (
        f"On {test.pairs} test pairs that the search never used, the winner prefers the chosen "
        f"answer in {_percent(test)} and the base in {_percent(base)}."
    )
    over = test.over_base.get("ranking")
    if over is None:  # earlier versions did not compare pair by pair
        return sentence
    low, high = over.interval
    conclusion = "the difference may be luck"
    if low > 0 or high < 0:
        conclusion = "the winner is better" if low > 0 else "the winner is worse"
    points = f"{100 * over.difference:+.1f} points"
    return (
        f"{sentence} Pair by pair, that is {points} (95 % interval {100 * low:+.1f} to "
        f"{100 * high:+.1f}): {conclusion}."
    )


def luck(results: Results) -> str:
    """Returns a clause on how much of the best value is luck, beside the value on the test split.

    Empty if the luck was not estimated.
    """
    found, metric = results.luck, results.objective.metric
    if found is None:
        return ""
    low, high = found.interval
    best = "largest" if results.objective.mode == "max" else "smallest"
    sentence = (
        f"the {best} {metric} of the search was {found.largest:.3f}; on new prompts expect "
        f"{found.expected:.3f} (95 % interval {low:.2f} to {high:.2f})"
    )
    test, name = results.test_of_winner, metric.removeprefix("eval/")
    if test and name in test.metrics:
        sentence += f"; on the {test.pairs} test pairs it is {test.metrics[name]:.3f}"
    return sentence


def _percent(numbers: Numbers) -> str:
    low, high = numbers.interval
    return f"{numbers.metrics['ranking']:.1%} (95 % interval {100 * low:.1f}–{100 * high:.1f})"


class SearchedAxis(NamedTuple):
    """An axis of the search space, as texts."""

    path: str
    range: str
    """For example `uniform 0.05 to 0.5`, or `one of null, alpha=32`."""
    condition: str
    """The values of other axes that make it active; empty if it is always active."""
    winners: str
    """The winner's value; `–` if the winner does not have the axis, empty without a winner."""


def searched_axes(results: Results) -> list[SearchedAxis]:
    """Returns the axes of the search space, in the YAML's order."""
    won = results.winner.config if results.winner else None
    axes = {path: Axis.model_validate(axis) for path, axis in results.search["space"].items()}
    return [
        SearchedAxis(
            path,
            _range(axis),
            ", ".join(f"{other}: {_wanted(wanted)}" for other, wanted in axis.when.items()),
            "" if won is None else value_text(won[path], 4) if path in won else "–",
        )
        for path, axis in axes.items()
    ]


def _range(axis: Axis) -> str:
    if axis.choice is None:
        return axis.describe()
    return f"one of {', '.join(value_text(value) for value in axis.choice)}"


def _wanted(wanted: object) -> str:
    some = wanted if isinstance(wanted, list) else [wanted]
    return " or ".join(value_text(value) for value in some)


def proposed_by(results: Results) -> str:
    """Returns what proposed the trials, like `Optuna's tpe, seed 0`."""
    sampler = results.search["sampler"]
    if sampler["name"] == "grid":
        return "a grid, one point after another"
    return f"Optuna's {sampler['name']}, seed {sampler['seed']}"


def stopping_rule(results: Results) -> str:
    """Returns the rule by which weak trials were stopped."""
    stopping, second = results.search["stopping"], results.objective.second
    compared = stopping["metric"] + (f" and {second.metric} (Pareto fronts)" if second else "")
    rules = {
        "asha": f"ASHA on {compared}, first rung at {stopping['grace_pairs']} pairs, one in "
        f"{stopping['reduction']} trials continues",
        "median": f"the median rule on {stopping['metric']}, from {stopping['grace_pairs']} pairs",
        "none": "none",
    }
    return rules[stopping["name"]]


def aim(results: Results) -> str:
    """Returns the objective, like `maximise eval/accuracy on held-out pairs`."""
    objective = results.objective
    parts = " and ".join(f"{part.mode}imise {part.metric}" for part in objective.parts)
    bounds = f", with {objective.bounds_text}" if objective.bounds else ""
    return f"{parts} on held-out pairs{bounds}"


def splits(results: Results) -> str:
    """Returns the pairs of each split, like `40 train, 10 eval, 10 test`; empty without data."""
    return ", ".join(f"{count} {name}" for name, count in results.data.get("pairs", {}).items())


def left_out(results: Results) -> str:
    """Returns how many rows were left out and why, like `3 longer than 512 tokens`."""
    return ", ".join(f"{count} {why}" for why, count in results.data.get("dropped", {}).items())


def hardware(results: Results) -> str:
    """Returns the hardware, like `2 CPU cores, no GPU`; empty if it is not known."""
    about = results.environment.get("hardware", {})
    if not about:
        return ""
    kinds = " ".join(about.get("kinds", []))
    gpus = f"{about['GPU']:g} GPU {kinds}".strip() if about.get("GPU") else "no GPU"
    return f"{about['CPU']:g} CPU cores, {gpus}"


def versions(results: Results) -> str:
    """Returns the versions of Python and the libraries; empty if they are not known."""
    about = results.environment
    if not about:
        return ""
    libraries = (f"{name} {number}" for name, number in about["versions"].items())
    return ", ".join([f"Python {about['python']}", *libraries])


def trial_yaml(results: Results) -> str:
    """Returns the winner's configuration as YAML, one line a section, without null values."""
    assert results.winner is not None
    fields = {name: results.search[name] for name in TrainConfig.model_fields
              if name in results.search}  # fmt: skip
    config = override(TrainConfig.model_validate(fields), results.winner.config)
    unused = set() if config.trainer == "simulated" else {"simulated"}
    if not config.eval_at_pairs:
        unused.add("eval_at_pairs")
    stream = io.StringIO()
    yaml = YAML(typ="rt", pure=True)
    yaml.default_flow_style = None
    yaml.width = 10_000
    yaml.dump(config.model_dump(mode="json", exclude_none=True, exclude=unused), stream)
    return stream.getvalue()


class Saved(NamedTuple):
    """An estimate of what early stopping saved."""

    pairs: int
    """Pairs that the stopped trials would have trained on."""
    seconds: float
    """Time for those pairs, by each trial's measured seconds per pair."""


def saved(results: Results) -> Saved | None:
    """Returns what early stopping saved.

    None if no trial was stopped, or if results.json does not give the length of a whole trial.
    """
    pairs, seconds = 0, 0.0
    for trial in results.trials:
        whole = most_pairs(results, trial.config)
        if trial.state == "stopped" and trial.pairs_seen and whole:
            left = max(0, whole - trial.pairs_seen)
            pairs += left
            seconds += left * trial.seconds / trial.pairs_seen
    return Saved(pairs, seconds) if pairs else None


def most_pairs(results: Results, config: Point) -> int | None:
    """Returns how many pairs a trial trains on if it is not stopped; None if that is unknown."""
    search = results.search
    if search.get("trainer") == "simulated":
        pairs = search["simulated"]["pairs"]
    else:
        pairs = results.data.get("pairs", {}).get("train")
    epochs = config.get("optim.epochs", search.get("optim", {}).get("epochs"))
    return int(pairs * epochs) if pairs and epochs else None
