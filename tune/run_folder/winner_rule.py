"""The one rule by which a best is chosen: among the reports of a trial, and among trials.

The largest of many noisy shares is a lucky one, and often the least trained: on easy pairs every
trial has 1.000 at its first report. So of the reports whose share is within one paired standard
error of the largest (all saw the same pairs), the best is the one with the largest soft share, and
of equals the later one. The soft share is the mean over pairs of Φ(m / (0.5 · median |m|)) of their
margins m: the share with its step rounded off, free of the margins' scale. Of an objective that is
no share the value itself decides. Where nearly all pairs are right, the other share (`ranking` for
`accuracy`, and the other way round) is added to the soft one, which by itself tells little there.
`benchmarks/RESULTS.md` says what this gained over the largest
value, and which other rules were tried.

Each trial is judged by its own best report, and the trials are then compared by the same rule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpo_train.scoring.intervals import standard_errors
from dpo_train.scoring.metrics import Floats, share_right

SOFTNESS = 0.5
"""Of the median margin. 0.3 does as well; 1 gains nothing and 2 loses (benchmarks/RESULTS.md)."""

SATURATED = 0.99
"""A share from which on it tells little."""

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Candidates:
    """k reports, each of which might be the best."""

    values: Floats
    """Shape (k,): of the objective, the larger the better; -inf where it can't be the best."""
    pairs_seen: Floats
    """Shape (k,): of equals the later one is better."""
    right: Floats | None = None
    """Shape (k, N): what each held-out pair adds to the share, between 0 and 1; None where the
    objective is no share, or a report has none."""
    soft: Floats | None = None
    """Shape (k,): by what near ones are compared."""
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
        """Of the margins of shape (k, N) whose share above 0 is the objective, and of those whose
        share is the other one."""
        soft = softness(margins, others, float(values.max()))
        return cls(values, pairs_seen, share_right(margins), soft, clusters)

    def rows(self, chosen: NDArray[np.intp]) -> Candidates:
        """Some of them, in the order asked for."""
        right = None if self.right is None else self.right[chosen]
        soft = None if self.soft is None else self.soft[chosen]
        return Candidates(self.values[chosen], self.pairs_seen[chosen], right, soft, self.clusters)


def best_first(candidates: Candidates) -> NDArray[np.intp]:
    """The indices: first those within one standard error of the largest value, by their soft share,
    then the others by their value."""
    values, later = candidates.values, candidates.pairs_seen
    if candidates.soft is None:
        return np.lexsort((-later, -values))
    near = is_near(candidates)
    return np.lexsort((-later, np.where(near, -candidates.soft, -values), ~near))


def is_near(candidates: Candidates) -> NDArray[np.bool_]:
    """Shape (k,): which lie within one paired standard error of the largest value. Of an objective
    that is no share those that equal it."""
    values, right, clusters = candidates.values, candidates.right, candidates.clusters
    largest = values.max()
    if right is None or candidates.soft is None or clusters is None or not np.isfinite(largest):
        return np.asarray(values == largest)
    first = np.lexsort((-candidates.pairs_seen, -candidates.soft, -values))[0]
    return is_within_error(largest - values, right[first] - right, clusters)


def is_within_error(
    behind: Floats, differences: Floats, clusters: NDArray[np.intp]
) -> NDArray[np.bool_]:
    """Shape (k,): whether reports that lie `behind` the largest value, shape (k,), lie there by no
    more than one standard error of their `differences` from it, shape (k, N)."""
    return np.asarray(behind <= standard_errors(differences, clusters) + _ROUNDING)


def most_behind(clusters: NDArray[np.intp]) -> float:
    """How far below the largest share another may lie and still be within one standard error of it,
    whatever their pairs are.

    Of N differences between -1 and 1 the squares around their mean sum up to at most N, and those
    of the sums over prompts to at most N times the pairs of the largest prompt.
    """
    sizes = np.bincount(clusters)
    largest, count = int(sizes.max()), len(sizes)
    return math.sqrt(largest * count / max(1, count - 1) / len(clusters)) + 2 * _ROUNDING


def softness(margins: Floats, others: Floats | None, largest: float) -> Floats:
    """Shape (k,): by what near ones are compared, given the largest value of all."""
    soft = soft_shares(margins)
    if others is None or largest < SATURATED:
        return soft
    both: Floats = soft + share_right(others).mean(axis=1)
    return both


def soft_shares(margins: Floats) -> Floats:
    """Shape (k,), of margins of shape (k, N)."""
    from scipy.special import ndtr  # 9 MB, and a trial's own process never needs it

    scale = np.median(np.abs(margins), axis=1, keepdims=True)
    # Where half of the margins are 0 there is no scale, and the step stays a step.
    soft = ndtr(margins / (SOFTNESS * np.where(scale > 0, scale, 1e-12)))
    shares: Floats = soft.mean(axis=1)
    return shares
