"""What one evaluation found: the metrics, and what each held-out pair had."""

from dataclasses import dataclass, field

from dpo_train.scoring.metrics import Floats


@dataclass(frozen=True)
class Evaluation:
    report: dict[str, float]
    """The metrics by their names (`eval/accuracy`), how far the trial is (`pairs_seen`, `step`,
    `epoch`) and how it trained since the evaluation before (`train/loss`, `train_seconds`)."""
    held_out: dict[str, Floats] = field(default_factory=dict)
    """By metric the value of each held-out pair, of shape (N,), in the order of the prepared rows;
    their mean is what is reported. By them two trials are compared pair by pair."""

    @property
    def pairs_seen(self) -> int:
        return int(self.report["pairs_seen"])


def named(values: dict[str, Floats]) -> dict[str, Floats]:
    """What `metrics.pair_values` gives, by the names under which metrics are reported."""
    return {f"eval/{name}": each for name, each in values.items()}
