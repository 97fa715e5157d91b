"""The catalogue of metrics, and the pure functions of summed log-probs that compute them.

A new metric is a function of pairs and an entry of METRICS. All code that names, orders, prints or
explains metrics reads METRICS. This module knows no model and no torch.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

NLL_BETA = 0.1
"""A constant beta, so that eval/nll can be compared between trials with different beta."""

PREFIX = "eval/"
"""What the name of every metric begins with."""

Floats = NDArray[np.float64]
Direction = Literal["min", "max"]


@dataclass(frozen=True)
class PairLogps:
    """Log-probs of N pairs: each array has shape (N,); sums are over completion tokens, in nats."""

    chosen: Floats
    rejected: Floats
    ref_chosen: Floats
    ref_rejected: Floats
    chosen_tokens: Floats
    rejected_tokens: Floats


@dataclass(frozen=True)
class Metric:
    """A metric: its name, meaning, unit and how it is computed."""

    name: str
    """The full name, like `eval/accuracy`."""
    meaning: str
    """One plain clause, without the unit."""
    unit: str = ""
    """The unit; empty for a share, and if it depends on the trial."""
    direction: Direction | None = None
    """Which way is better. None if it can be neither an objective nor a bound."""
    base: float | None = None
    """The value that the base model has by definition, because it is its own reference. None if it
    must be measured."""
    of_pairs: Callable[[PairLogps], Floats] | None = None
    """Computes the value of each pair, shape (N,); their mean is reported. None if only the trainer
    can compute it."""
    is_share: bool = False
    """Whether it is the share of pairs in which a margin is above 0. tune/run_folder/held_out.py
    says which margin. The rule that chooses a winner uses these margins."""

    @property
    def short_name(self) -> str:
        """The name without the prefix, like `accuracy`."""
        return self.name.removeprefix(PREFIX)

    @property
    def label(self) -> str:
        """The short name with the unit, like `drift, nats per token`."""
        return f"{self.short_name}, {self.unit}" if self.unit else self.short_name

    @property
    def explained(self) -> str:
        """The meaning with the unit."""
        return f"{self.meaning}, in {self.unit}" if self.unit else self.meaning


def objectives() -> dict[str, Direction]:
    """Return the metrics that can be an objective or bounded, and which way is better, by name."""
    return {metric.name: metric.direction for metric in METRICS if metric.direction}


def measured(short_names: Collection[str]) -> list[Metric]:
    """Return the metrics that can be an objective and have one of these short names."""
    return [each for each in METRICS if each.direction and each.short_name in short_names]


def pair_values(pairs: PairLogps) -> dict[str, Floats]:
    """Return the value of each pair, shape (N,), by the metric's short name.

    `token_margin` is included, too: `ranking` is the share of pairs in which it is above 0. It is
    stored for each pair, and not reported.
    """
    values = {each.short_name: each.of_pairs(pairs) for each in METRICS if each.of_pairs}
    return {**values, _TOKEN_MARGIN: token_margin(pairs)}


def means(values: dict[str, Floats]) -> dict[str, float]:
    """Return the reported values: the means of `pair_values` over the pairs."""
    return {name: float(np.mean(each)) for name, each in values.items() if name != _TOKEN_MARGIN}


_TOKEN_MARGIN = "token_margin"


def chosen_shift(pairs: PairLogps) -> Floats:
    """Return Delta = log pi / pi_ref of the chosen completion, in nats, shape (N,).

    It is the implicit reward of DPO (arXiv:2305.18290 eq. 5) without beta.
    """
    shift: Floats = pairs.chosen - pairs.ref_chosen
    return shift


def rejected_shift(pairs: PairLogps) -> Floats:
    """Return Delta of the rejected completion, in nats, shape (N,)."""
    shift: Floats = pairs.rejected - pairs.ref_rejected
    return shift


def margin(pairs: PairLogps) -> Floats:
    """Return Delta of the chosen minus Delta of the rejected completion, in nats, shape (N,)."""
    difference: Floats = chosen_shift(pairs) - rejected_shift(pairs)
    return difference


def accuracy(pairs: PairLogps) -> Floats:
    """Return 1 where the margin is above 0, one half where it is 0, else 0; shape (N,)."""
    return share_right(margin(pairs))


def drift(pairs: PairLogps) -> Floats:
    """Return |Delta| of both completions over their tokens, in nats per token, shape (N,)."""
    shifts = np.abs(chosen_shift(pairs)) + np.abs(rejected_shift(pairs))
    per_token: Floats = shifts / (pairs.chosen_tokens + pairs.rejected_tokens)
    return per_token


def share_right(margin: Floats) -> Floats:
    """Return 1 where the margin is above 0, one half where it is 0, else 0; the same shape."""
    right: Floats = (margin > 0) + 0.5 * (margin == 0)
    return right


def nll(margin: Floats) -> Floats:
    """Return -log sigmoid(0.1 margin), of the same shape: DPO's loss (eq. 7) at beta 0.1."""
    losses: Floats = np.logaddexp(0.0, -NLL_BETA * margin)
    return losses


def token_margin(pairs: PairLogps) -> Floats:
    """Return the mean log-prob per token of chosen minus that of rejected, in nats, shape (N,)."""
    difference: Floats = pairs.chosen / pairs.chosen_tokens - pairs.rejected / pairs.rejected_tokens
    return difference


def ranking(pairs: PairLogps) -> Floats:
    """Return 1 where the chosen completion has the higher mean log-prob per token, else 0.

    Shape (N,). A tie counts one half. It needs no reference, so base and winner are compared by it.
    """
    return share_right(token_margin(pairs))


METRICS: tuple[Metric, ...] = (
    Metric(
        "eval/ranking",
        "share of pairs whose chosen answer the model itself finds likelier, per token",
        direction="max",
        of_pairs=ranking,
        is_share=True,
    ),
    Metric(
        "eval/accuracy",
        "share of pairs whose chosen answer has the higher log-ratio to the base; a tie is a half",
        direction="max",
        base=0.5,
        of_pairs=accuracy,
        is_share=True,
    ),
    Metric(
        "eval/nll",
        "mean −log σ(0.1 · margin), comparable between trials of any beta and loss",
        "nats",
        direction="min",
        base=0.693147,
        of_pairs=lambda pairs: nll(margin(pairs)),
    ),
    Metric(
        "eval/margin",
        "mean difference of the two answers' log-ratios to the base, not multiplied by beta",
        "nats",
        direction="max",
        base=0.0,
        of_pairs=margin,
    ),
    Metric(
        "eval/drift",
        "how far the model left the base: mean absolute log-ratio",
        "nats per token",
        direction="min",
        base=0.0,
        of_pairs=drift,
    ),
    Metric(
        "eval/chosen_shift",
        "mean log-ratio of the chosen answer to the base",
        "nats",
        base=0.0,
        of_pairs=chosen_shift,
    ),
    Metric(
        "eval/rejected_shift",
        "mean log-ratio of the rejected answer to the base",
        "nats",
        base=0.0,
        of_pairs=rejected_shift,
    ),
    Metric(
        "eval/loss",
        "the trial's own loss; no objective where beta or the loss is searched",
        direction="min",
    ),
)

SHARES = tuple(metric.name for metric in METRICS if metric.is_share)
