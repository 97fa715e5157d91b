"""Pareto fronts of pairs of values; in both values larger is better."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ValuePair = tuple[float, float]


def front_numbers(pairs: Sequence[ValuePair]) -> list[int]:
    """Return the number of each pair's front; equal pairs share one.

    Front 0 has the pairs that no other pair dominates (beats in one value without losing in the
    other), front 1 those that only pairs of front 0 dominate, and so on. This is non-dominated
    sorting (NSGA-II, Deb et al. 2002), done in one sweep since there are two values.
    """
    numbers = [0] * len(pairs)
    last: list[ValuePair] = []  # for each front so far, its pair with the best second value
    seconds: list[float] = []  # the second values of `last`, negated so that they ascend
    for index in sorted(range(len(pairs)), key=pairs.__getitem__, reverse=True):
        pair = pairs[index]
        number = bisect_right(seconds, -pair[1])
        if number and last[number - 1] == pair:
            number -= 1
        last[number : number + 1] = [pair]
        seconds[number : number + 1] = [-pair[1]]
        numbers[index] = number
    return numbers


def on_front(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which pairs of values lie on front 0, of shape (k,). For many pairs this is much
    faster than `front_numbers`."""
    order = np.lexsort((-second, -first))
    firsts, seconds = first[order], second[order]
    beats_all_before = np.ones(len(order), bool)
    beats_all_before[1:] = seconds[1:] > np.maximum.accumulate(seconds)[:-1]
    is_repeated = np.zeros(len(order), bool)
    is_repeated[1:] = (firsts[1:] == firsts[:-1]) & (seconds[1:] == seconds[:-1])
    # Equal pairs share a front, so each gets the answer of the first of them.
    leads = np.flatnonzero(~is_repeated)
    found = np.zeros(len(order), bool)
    found[order] = beats_all_before[leads][np.cumsum(~is_repeated) - 1]
    return found


def spread(pairs: Sequence[ValuePair]) -> list[int]:
    """Return the indices of a front's pairs, ordered so that the first few cover the whole front.

    The pair with the best first value comes first, then always the pair farthest from all pairs
    before it. This is the epsilon-net of MO-ASHA (Schmucker et al. 2021, arXiv:2106.12639).
    """
    points = np.array(pairs, dtype=float)
    with np.errstate(invalid="ignore", divide="ignore"):
        # The two values have different units, so distances are relative to the front's extent.
        points = np.nan_to_num((points - points.min(axis=0)) / np.ptp(points, axis=0))
    order = [int(points[:, 0].argmax())]
    nearest = np.full(len(points), np.inf)
    while len(order) < len(points):
        nearest = np.minimum(nearest, np.linalg.norm(points - points[order[-1]], axis=1))
        nearest[order] = -1  # the distance between equal pairs is 0, so exclude those we have
        order.append(int(nearest.argmax()))
    return order
