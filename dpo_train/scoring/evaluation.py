"""The result of one evaluation: the metrics, and the value of each held-out pair."""

from dataclasses import dataclass, field

from dpo_train.scoring.metrics import Floats


@dataclass(frozen=True)
class Evaluation:
    """The result of one evaluation of a trial."""

    report: dict[str, float]
    """The metrics by name (`eval/accuracy`), the progress of the trial (`pairs_seen`, `step`,
    `epoch`), and its training since the previous evaluation (`train/loss`, `train_seconds`)."""
    held_out: dict[str, Floats] = field(default_factory=dict)
    """The value of each held-out pair by metric, shape (N,), in the order of the prepared rows.
    Their mean is reported. Two trials are compared by them pair by pair."""

    @property
    def pairs_seen(self) -> int:
        """Pairs that the trial has trained on."""
        return int(self.report["pairs_seen"])


def named(values: dict[str, Floats]) -> dict[str, Floats]:
    """Return the values of `metrics.pair_values` by the metrics' full names, like `eval/nll`."""
    return {f"eval/{name}": each for name, each in values.items()}
