"""Non-domination among pairs of values, of which the larger is better in both."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ValuePair = tuple[float, float]


def front_numbers(pairs: Sequence[ValuePair]) -> list[int]:
    """The front on which each pair lies: 0 where no other beats it in one value without losing in
    the other, 1 where only pairs of front 0 do, and so on; equal pairs share one.

    Non-dominated sorting (NSGA-II, Deb et al. 2002), for two values in one sweep.
    """
    numbers = [0] * len(pairs)
    last: list[ValuePair] = []  # of each front so far: of its pairs the best in the second value
    seconds: list[float] = []  # theirs, negated, which ascend
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
    """Shape (k,): which pairs of two values lie on front 0; for many, much faster than all
    `front_numbers`."""
    order = np.lexsort((-second, -first))
    firsts, seconds = first[order], second[order]
    beats_all_before = np.ones(len(order), bool)
    beats_all_before[1:] = seconds[1:] > np.maximum.accumulate(seconds)[:-1]
    is_repeated = np.zeros(len(order), bool)
    is_repeated[1:] = (firsts[1:] == firsts[:-1]) & (seconds[1:] == seconds[:-1])
    # Equal pairs share a front: each has what the first of them has.
    leads = np.flatnonzero(~is_repeated)
    found = np.zeros(len(order), bool)
    found[order] = beats_all_before[leads][np.cumsum(~is_repeated) - 1]
    return found


def spread(pairs: Sequence[ValuePair]) -> list[int]:
    """The indices of a front's pairs in an order of which every beginning covers it: the best in
    the first value, then always the pair farthest from all before it.

    The epsilon-net of MO-ASHA (Schmucker et al. 2021, arXiv:2106.12639).
    """
    points = np.array(pairs, dtype=float)
    with np.errstate(invalid="ignore", divide="ignore"):
        # The two have units of their own: distances are in shares of the front's extent.
        points = np.nan_to_num((points - points.min(axis=0)) / np.ptp(points, axis=0))
    order = [int(points[:, 0].argmax())]
    nearest = np.full(len(points), np.inf)
    while len(order) < len(points):
        nearest = np.minimum(nearest, np.linalg.norm(points - points[order[-1]], axis=1))
        nearest[order] = -1  # equal pairs lie no distance apart
        order.append(int(nearest.argmax()))
    return order
