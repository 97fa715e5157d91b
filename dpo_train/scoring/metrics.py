"""What an evaluation reports: pure functions of summed log-probs. Knows no model and no torch."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

MODES: dict[str, Literal["min", "max"]] = {
    "eval/accuracy": "max",
    "eval/ranking": "max",
    "eval/nll": "min",
    "eval/margin": "max",
    "eval/drift": "min",
    "eval/loss": "min",
}
"""Metrics that can be an objective, and which way is better."""

NLL_BETA = 0.1
"""A constant, so that eval/nll can be compared between trials of different beta."""

SHARES = ("eval/accuracy", "eval/ranking")
"""Metrics that are shares of pairs."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PairLogps:
    """Log-probs of N pairs: each array has shape (N,); sums are over completion tokens, in nats."""

    chosen: Floats
    rejected: Floats
    ref_chosen: Floats
    ref_rejected: Floats
    chosen_tokens: Floats
    rejected_tokens: Floats


def pair_values(pairs: PairLogps) -> dict[str, Floats]:
    """Each held-out metric's value for each pair, of shape (N,), without the prefix `eval/`.

    With Delta = log pi / pi_ref of a completion (the implicit reward of DPO, arXiv:2305.18290
    eq. 5, without beta): accuracy is the share of Delta_chosen > Delta_rejected, a tie counting
    one half; nll is eq. 7 at beta 0.1; margin and shifts are in nats; drift is |Delta| per token.
    token_margin is what `ranking` is the share of; it is kept for each pair and not reported.
    """
    chosen, rejected = pairs.chosen - pairs.ref_chosen, pairs.rejected - pairs.ref_rejected
    margin = chosen - rejected
    drift = (np.abs(chosen) + np.abs(rejected)) / (pairs.chosen_tokens + pairs.rejected_tokens)
    return {
        "accuracy": share_right(margin),
        "ranking": ranking(pairs),
        "nll": nll(margin),
        "margin": margin,
        "drift": drift,
        "chosen_shift": chosen,
        "rejected_shift": rejected,
        _TOKEN_MARGIN: token_margin(pairs),
    }


def means(values: dict[str, Floats]) -> dict[str, float]:
    """The held-out metrics: means of `pair_values` over the pairs."""
    return {name: float(np.mean(each)) for name, each in values.items() if name != _TOKEN_MARGIN}


def share_right(margin: Floats) -> Floats:
    """1 where the margin is above 0, one half where it is 0, else 0; of the same shape."""
    right: Floats = (margin > 0) + 0.5 * (margin == 0)
    return right


def nll(margin: Floats) -> Floats:
    """-log sigmoid(0.1 margin), of the same shape."""
    losses: Floats = np.logaddexp(0.0, -NLL_BETA * margin)
    return losses


def token_margin(pairs: PairLogps) -> Floats:
    """Shape (N,): the chosen completion's mean log-prob per token less the rejected one's."""
    difference: Floats = pairs.chosen / pairs.chosen_tokens - pairs.rejected / pairs.rejected_tokens
    return difference


def ranking(pairs: PairLogps) -> Floats:
    """Shape (N,): 1 where the chosen completion has the higher mean log-prob per token, else 0.

    A tie counts one half. Needs no reference, so base and winner are compared in it.
    """
    return share_right(token_margin(pairs))


_TOKEN_MARGIN = "token_margin"
