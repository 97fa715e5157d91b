"""What report and model card both say: the winner in one sentence, its configuration, and what
stopping trials early saved."""

from __future__ import annotations

import io
from typing import NamedTuple

from ruamel.yaml import YAML

from dpo_train.config import TrainConfig
from dpo_train.config_base import override
from dpo_train.evaluation.test_report import Numbers
from tune.config.space import Point
from tune.run_folder.results import Results


def verdict(results: Results) -> str:
    """Whether the winner beats the base, in numbers of the test split; empty if the winner was not
    judged there. What decides is their difference pair by pair."""
    base, test = results.test_of_base, results.test_of_winner
    if base is None or test is None:
        return ""
    sentence = (
        f"On {test.pairs} test pairs that decided nothing, the winner finds the chosen answer "
        f"likelier in {_percent(test)} and the base in {_percent(base)}."
    )
    over = test.over_base.get("ranking")
    if over is None:  # earlier versions did not compare pair by pair
        return sentence
    low, high = over.interval
    conclusion = "do not count on a difference"
    if low > 0 or high < 0:
        conclusion = "the winner is better" if low > 0 else "the winner is worse"
    points = f"{100 * over.difference:+.1f} points"
    return (
        f"{sentence} Pair by pair that is {points} (95 % interval {100 * low:+.1f} to "
        f"{100 * high:+.1f}): {conclusion}."
    )


def luck(results: Results) -> str:
    """How much of the best number is luck, and how well that foretold the test split; empty where
    it was not estimated."""
    found, metric = results.luck, results.objective.metric
    if found is None:
        return ""
    low, high = found.interval
    most = "largest" if results.objective.mode == "max" else "smallest"
    sentence = (
        f"{metric}: {found.largest:.3f} was the {most} seen; expected on new prompts "
        f"{found.expected:.3f} (95 % interval {low:.2f} to {high:.2f})"
    )
    test, name = results.test_of_winner, metric.removeprefix("eval/")
    if test and name in test.metrics:
        sentence += f"; on the {test.pairs} test pairs it is {test.metrics[name]:.3f}"
    return sentence


def _percent(numbers: Numbers) -> str:
    low, high = numbers.interval
    return f"{numbers.metrics['ranking']:.1%} (95 % interval {100 * low:.1f}–{100 * high:.1f})"


def trial_yaml(results: Results) -> str:
    """The winner's configuration, one line a part; what is null by default is left out."""
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
    """An estimate."""

    pairs: int
    """That the stopped trials would have trained on."""
    seconds: float
    """Those pairs, at each trial's own measured seconds per pair."""


def saved(results: Results) -> Saved | None:
    """None where no trial was stopped, or results.json does not say how long one would be."""
    pairs, seconds = 0, 0.0
    for trial in results.trials:
        whole = most_pairs(results, trial.config)
        if trial.state == "stopped" and trial.pairs_seen and whole:
            left = max(0, whole - trial.pairs_seen)
            pairs += left
            seconds += left * trial.seconds / trial.pairs_seen
    return Saved(pairs, seconds) if pairs else None


def most_pairs(results: Results, config: Point) -> int | None:
    """The pairs of a trial that is not stopped; None where results.json does not say."""
    search = results.search
    if search.get("trainer") == "simulated":
        pairs = search["simulated"]["pairs"]
    else:
        pairs = results.data.get("pairs", {}).get("train")
    epochs = config.get("optim.epochs", search.get("optim", {}).get("epochs"))
    return int(pairs * epochs) if pairs and epochs else None
