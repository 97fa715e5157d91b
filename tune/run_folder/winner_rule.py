"""Defines the rule that chooses the best report of a trial, and the best of several trials.

Problem: the largest of many noisy shares of pairs is a lucky one, often of the least trained model.
On easy pairs every trial has 1.000 at its first report. So we look at all reports whose share is
within one paired standard error of the largest (all saw the same pairs). The best of them has the
largest soft share; of equal ones the later report is better.

The soft share is the mean of Φ(m / (0.5 · median |m|)) over the margins m of the pairs: a share
with a smooth step, which does not depend on the margins' scale. Where nearly all pairs are right,
it says little alone, so the other metric's share is added, without a smooth step (`ranking` for
`accuracy` and vice versa). For an objective that is no share, the value itself decides.

Trials are compared by their best reports, with the same rule. `benchmarks/RESULTS.md` says what the
rule gained over the largest value, and which other rules were tried.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpo_train.scoring.intervals import standard_errors
from dpo_train.scoring.metrics import Floats, share_right

SOFTNESS = 0.5
"""The width of the smooth step, as a share of the median margin. In our measurements 0.3 was as
good, 1 gained nothing and 2 lost (benchmarks/RESULTS.md)."""

SATURATED = 0.99
"""A share of this size or more says little."""

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Candidates:
    """k reports, of which one is chosen as the best."""

    values: Floats
    """Shape (k,): the objective, the larger the better; -inf if the report can't be the best."""
    pairs_seen: Floats
    """Shape (k,): of equal reports the later one is better."""
    right: Floats | None = None
    """Shape (k, N): what each held-out pair adds to the share, between 0 and 1; None if the
    objective is no share, or a report has no values of pairs."""
    soft: Floats | None = None
    """Shape (k,): the soft shares, by which near reports are compared."""
    clusters: NDArray[np.intp] | None = None
    """Shape (N,): the number of each pair's prompt."""

    @classmethod
    def of_margins(
        cls,
        values: Floats,
        pairs_seen: Floats,
        margins: Floats,
        clusters: NDArray[np.intp],
        others: Floats | None = None,
    ) -> Candidates:
        """Makes candidates from margins of shape (k, N), whose share above 0 is the objective.

        `others` are the margins of the other metric (`ranking` for `accuracy` and vice versa).
        """
        soft = softness(margins, others, float(values.max()))
        return cls(values, pairs_seen, share_right(margins), soft, clusters)

    def rows(self, chosen: NDArray[np.intp]) -> Candidates:
        """Returns the chosen candidates, in the order of `chosen`."""
        right = None if self.right is None else self.right[chosen]
        soft = None if self.soft is None else self.soft[chosen]
        return Candidates(self.values[chosen], self.pairs_seen[chosen], right, soft, self.clusters)


def best_first(candidates: Candidates) -> NDArray[np.intp]:
    """Returns the indices of the candidates, the best first.

    Those within one standard error of the largest value come first, by their soft share. The others
    follow by value.
    """
    values, later = candidates.values, candidates.pairs_seen
    if candidates.soft is None:
        return np.lexsort((-later, -values))
    near = is_near(candidates)
    return np.lexsort((-later, np.where(near, -candidates.soft, -values), ~near))


def is_near(candidates: Candidates) -> NDArray[np.bool_]:
    """Returns which candidates are within one paired standard error of the largest value.

    For an objective that is no share, these are the ones that equal it. Shape (k,).
    """
    values, right, clusters = candidates.values, candidates.right, candidates.clusters
    largest = values.max()
    if right is None or candidates.soft is None or clusters is None or not np.isfinite(largest):
        return np.asarray(values == largest)
    first = np.lexsort((-candidates.pairs_seen, -candidates.soft, -values))[0]
    return is_within_error(largest - values, right[first] - right, clusters)


def is_within_error(
    behind: Floats, differences: Floats, clusters: NDArray[np.intp]
) -> NDArray[np.bool_]:
    """Returns which reports are at most one standard error behind the largest value, shape (k,).

    `behind`, (k,), is how far each report is behind, and `differences`, (k, N), the same for each
    pair.
    """
    return np.asarray(behind <= standard_errors(differences, clusters) + _ROUNDING)


def most_behind(clusters: NDArray[np.intp]) -> float:
    """Returns the largest distance at which a share can be within one standard error of another.

    It holds for any values: the squared deviations of N differences between -1 and 1 add up to at
    most N. If the differences are first summed by prompt, they add up to at most N times the pairs
    of the largest prompt.
    """
    sizes = np.bincount(clusters)
    largest, count = int(sizes.max()), len(sizes)
    return math.sqrt(largest * count / max(1, count - 1) / len(clusters)) + 2 * _ROUNDING


def softness(margins: Floats, others: Floats | None, largest: float) -> Floats:
    """Returns the soft shares, shape (k,). If `largest` is saturated, it adds the other metric's
    share, without a smooth step."""
    soft = soft_shares(margins)
    if others is None or largest < SATURATED:
        return soft
    both: Floats = soft + share_right(others).mean(axis=1)
    return both


def soft_shares(margins: Floats) -> Floats:
    """Returns the soft shares, shape (k,), of margins of shape (k, N)."""
    from scipy.special import ndtr  # 9 MB, and a trial's own process never needs it

    scale = np.median(np.abs(margins), axis=1, keepdims=True)
    # If half of the margins are 0 the scale is 0. We replace it with a tiny one, so the step stays.
    soft = ndtr(margins / (SOFTNESS * np.where(scale > 0, scale, 1e-12)))
    shares: Floats = soft.mean(axis=1)
    return shares
