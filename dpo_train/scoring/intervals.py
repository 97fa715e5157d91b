"""Intervals of means over held-out pairs.

Pairs of the same prompt are not independent, so prompts are counted and resampled, and not pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpo_train.scoring.metrics import Floats

Prompts = Sequence[Any] | NDArray[Any]
"""The prompt of each pair: any values that are equal for pairs of the same prompt."""

_TAIL = 0.025
"""The probability on each side of a 95 % interval."""


def share_interval(values: Floats, prompts: Prompts) -> list[float]:
    """Return the 95 % interval of a share, which is the mean of values between 0 and 1.

    It is Jeffreys' interval (Brown, Cai and DasGupta 2001, eq. 3.3) at the effective number of
    prompts. It is also valid near 0 and 1, where a bootstrap of equal values would have no width.
    """
    return jeffreys(float(np.mean(values)), effective_prompts(values, prompts))


def jeffreys(share: float, count: float) -> list[float]:
    """Return Jeffreys' 95 % interval of a share of `count` independent draws.

    `count` need not be a whole number.
    """
    from scipy.special import betaincinv  # it takes 9 MB of memory; see winner_rule.py

    right, wrong = share * count, (1 - share) * count
    low = betaincinv(right + 0.5, wrong + 0.5, _TAIL) if right > 1e-9 else 0.0
    high = betaincinv(right + 0.5, wrong + 0.5, 1 - _TAIL) if wrong > 1e-9 else 1.0
    return [float(low), float(high)]


def effective_prompts(values: Floats, prompts: Prompts) -> float:
    """Return how many independent pairs would give a share of the same certainty.

    It is between the number of prompts and the number of pairs, and the number of prompts if all
    values are equal.
    """
    share, clusters = float(np.mean(values)), cluster_numbers(prompts)
    variance = float(standard_errors(values[None], clusters)[0]) ** 2
    fewest, most = int(clusters.max()) + 1, len(values)
    if variance == 0:
        return float(fewest)
    return float(np.clip(share * (1 - share) / variance, fewest, most))


def mean_interval(values: Floats, prompts: Prompts) -> list[float]:
    """Return the 95 % interval of the mean of values that are not shares.

    It is a percentile bootstrap (Efron 1979) over prompts, which are drawn with replacement.
    """
    low, high = np.quantile(_bootstrap_means(values, prompts), [_TAIL, 1 - _TAIL])
    return [float(low), float(high)]


def difference_interval(values: Floats, prompts: Prompts) -> list[float]:
    """Return the 95 % interval of the mean difference of two models on the same pairs.

    It is `mean_interval`. If no pair differs, the bound is the share of prompts that may still
    differ: 1 - 0.025^(1/n), the exact bound for 0 of n.
    """
    if np.any(values):
        return mean_interval(values, prompts)
    bound = 1 - _TAIL ** (1 / (int(cluster_numbers(prompts).max()) + 1))
    return [-bound, bound]


def standard_errors(values: Floats, clusters: NDArray[np.intp]) -> Floats:
    """Return the standard error of the mean of each row of values, shape (k,).

    `values` has shape (k, N), and `clusters` the number of each pair's prompt, shape (N,). It is
    the variance between prompts of a ratio of sums; with one pair per prompt it is the usual one.
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
    """Return the number of each pair's prompt, counted from 0, shape (N,)."""
    return np.unique(np.asarray(prompts), return_inverse=True)[1].reshape(-1)


def _bootstrap_means(values: Floats, prompts: Prompts) -> Floats:
    """Return 2000 bootstrap means. The draws have a fixed seed, so results are reproducible."""
    clusters = cluster_numbers(prompts)
    sums, sizes = np.bincount(clusters, values), np.bincount(clusters)
    drawn = np.random.default_rng(0).integers(len(sums), size=(2000, len(sums)))
    drawn_means: Floats = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    return drawn_means
