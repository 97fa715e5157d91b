"""What report and model card both say about a winner: one sentence, and its configuration."""

from __future__ import annotations

import io
from typing import Any

from ruamel.yaml import YAML

from dpo_train.config import TrainConfig
from dpo_train.config_base import override
from tune.run_folder.results import Results

_MEANINGS = {
    "ranking": "chosen answer likelier than the rejected one, per token",
    "accuracy": "log-ratio of the chosen answer above that of the rejected one",
    "nll": "mean −log σ(0.1 · margin)",
    "margin": "difference of the two log-ratios, in nats",
    "drift": "mean absolute log-ratio per token, in nats",
    "chosen_shift": "log-ratio of the chosen answer, in nats",
    "rejected_shift": "log-ratio of the rejected answer, in nats",
    "loss": "the trial's own loss",
    "answer_tokens": "mean length of greedy answers, in tokens: longer ones often please judges",
}


def verdict(results: Results) -> str:
    """One sentence in numbers of the test split; empty if the winner was not judged."""
    base = results.base.get("test")
    test = results.winner.test if results.winner else {}
    if not base or not test:
        return ""
    sentence = (
        f"On {test['pairs']} test pairs that decided nothing, the winner finds the chosen answer "
        f"likelier in {_percent(test)} and the base in {_percent(base)}."
    )
    if test["interval"][0] <= base["interval"][1]:
        sentence += " The intervals overlap: do not count on a difference."
    return sentence


def _percent(numbers: dict[str, Any]) -> str:
    low, high = numbers["interval"]
    return f"{numbers['ranking']:.1%} (95 % interval {100 * low:.1f}–{100 * high:.1f})"


def trial_yaml(results: Results) -> str:
    """The winner's configuration, one line a part; what is null by default is left out."""
    assert results.winner is not None
    fields = {name: results.search[name] for name in TrainConfig.model_fields}
    config = override(TrainConfig.model_validate(fields), results.winner.config)
    unused = set() if config.trainer == "simulated" else {"simulated"}
    stream = io.StringIO()
    yaml = YAML(typ="rt", pure=True)
    yaml.default_flow_style = None
    yaml.width = 10_000
    yaml.dump(config.model_dump(mode="json", exclude_none=True, exclude=unused), stream)
    return stream.getvalue()
