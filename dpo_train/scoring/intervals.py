"""How sure a number over held-out pairs is. Pairs of one prompt are not independent, so prompts are
what is counted and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpo_train.scoring.metrics import Floats

Prompts = Sequence[Any] | NDArray[Any]
"""Of each pair which prompt it has: any values that are equal where the prompt is."""

_TAIL = 0.025


def share_interval(values: Floats, prompts: Prompts) -> list[float]:
    """The 95 % interval of a share, the mean of values between 0 and 1.

    Jeffreys' interval (Brown, Cai and DasGupta 2001, eq. 3.3) at the effective number of prompts.
    It holds near 0 and 1, where a bootstrap of values that are all alike has no width.
    """
    return jeffreys(float(np.mean(values)), effective_prompts(values, prompts))


def jeffreys(share: float, count: float) -> list[float]:
    """The 95 % interval of a share of so many independent draws, which need not be whole."""
    from scipy.special import betaincinv  # 9 MB: see winner_rule.py

    right, wrong = share * count, (1 - share) * count
    low = betaincinv(right + 0.5, wrong + 0.5, _TAIL) if right > 1e-9 else 0.0
    high = betaincinv(right + 0.5, wrong + 0.5, 1 - _TAIL) if wrong > 1e-9 else 1.0
    return [float(low), float(high)]


def effective_prompts(values: Floats, prompts: Prompts) -> float:
    """How many independent pairs tell a share as surely as these do: between the number of prompts
    and that of pairs. The number of prompts where all values are alike."""
    share, clusters = float(np.mean(values)), cluster_numbers(prompts)
    variance = float(standard_errors(values[None], clusters)[0]) ** 2
    fewest, most = int(clusters.max()) + 1, len(values)
    if variance == 0:
        return float(fewest)
    return float(np.clip(share * (1 - share) / variance, fewest, most))


def mean_interval(values: Floats, prompts: Prompts) -> list[float]:
    """The 95 % interval of the mean of values that are no shares, prompts drawn with replacement:
    percentile bootstrap (Efron 1979) over clusters."""
    low, high = np.quantile(_bootstrap_means(values, prompts), [_TAIL, 1 - _TAIL])
    return [float(low), float(high)]


def difference_interval(values: Floats, prompts: Prompts) -> list[float]:
    """`mean_interval` of the differences of what two models have for the same pairs.

    Where no pair differs, it is bounded by the share of prompts that may differ all the same:
    1 - 0.025^(1/n), the exact bound of none in n.
    """
    if np.any(values):
        return mean_interval(values, prompts)
    bound = 1 - _TAIL ** (1 / (int(cluster_numbers(prompts).max()) + 1))
    return [-bound, bound]


def standard_errors(values: Floats, clusters: NDArray[np.intp]) -> Floats:
    """Of the mean of each row of values, shape (k, N), by the numbers of the prompts, shape (N,).

    The variance between prompts of a ratio of sums; with one pair a prompt the usual one.
    """
    means = values.mean(axis=1, keepdims=True)
    count = int(clusters.max()) + 1
    if count == values.shape[1]:
        off = values - means
    else:
        ones = np.zeros((values.shape[1], count))
        ones[np.arange(len(clusters)), clusters] = 1
        off = (values - means) @ ones
    spread = (off**2).sum(axis=1) * count / max(1, count - 1)
    errors: Floats = np.sqrt(spread) / values.shape[1]
    return errors


def cluster_numbers(prompts: Prompts) -> NDArray[np.intp]:
    """Of each pair the number of its prompt, counted from 0."""
    return np.unique(np.asarray(prompts), return_inverse=True)[1].reshape(-1)


def _bootstrap_means(values: Floats, prompts: Prompts) -> Floats:
    """Always the same 2000 draws, so that the same values have the same interval."""
    clusters = cluster_numbers(prompts)
    sums, sizes = np.bincount(clusters, values), np.bincount(clusters)
    drawn = np.random.default_rng(0).integers(len(sums), size=(2000, len(sums)))
    drawn_means: Floats = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    return drawn_means
