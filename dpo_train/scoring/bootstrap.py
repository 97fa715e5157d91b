"""Uncertainty of a mean over pairs, by a bootstrap that draws prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dpo_train.scoring.metrics import Floats


def bootstrap_interval(values: Floats, prompts: Sequence[str]) -> list[float]:
    """The 95 % interval of the mean of values, prompts drawn with replacement.

    Percentile bootstrap (Efron 1979) over clusters: pairs of one prompt are drawn together. Of the
    differences of two models' values for the same pairs it is the paired one.
    """
    low, high = np.quantile(_bootstrap_means(values, prompts), [0.025, 0.975])
    return [float(low), float(high)]


def standard_error(values: Floats, prompts: Sequence[str]) -> float:
    """Of the mean of values, from the same draws as `bootstrap_interval`."""
    return float(_bootstrap_means(values, prompts).std())


def _bootstrap_means(values: Floats, prompts: Sequence[str]) -> Floats:
    """Always the same 2000 draws, so that the same values have the same interval."""
    groups: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault(prompt, []).append(index)
    sums = np.array([values[members].sum() for members in groups.values()])
    sizes = np.array([len(members) for members in groups.values()])
    drawn = np.random.default_rng(0).integers(len(sums), size=(2000, len(sums)))
    drawn_means: Floats = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    return drawn_means
