"""`points: {from: RUN, best: 5}`: a search begins where an earlier one ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpo_train.errors import InputError
from dpo_train.storage import mirror
from tune.objective import Objective
from tune.records import find_run, read_records
from tune.space import Point, Space, check_point


def best_points(asked: Mapping[str, Any], space: Space, objective: Objective) -> list[Point]:
    """The points of an earlier search's best trials by this one's objective, of those that lie in
    this space.

    Raises InputError if none does, or if what is asked is not understood.
    """
    count = asked.get("best", 5)
    is_count = isinstance(count, int) and not isinstance(count, bool) and count >= 1
    if set(asked) - {"from", "best"} or "from" not in asked or not is_count:
        raise InputError(
            f"points: {dict(asked)} is no list of points, and not `{{from: runs/earlier, best: 5}}`"
        )
    folder = find_run(str(asked["from"]))
    measured = [trial for trial in read_records(folder) if trial.metrics and not trial.confirms]
    points: list[Point] = []
    for trial in objective.ranked(measured, lambda trial: trial.metrics):
        if len(points) < count and trial.config not in points and _fits(trial.config, space):
            points.append(trial.config)
    if not points:
        raise InputError(
            f"points: none of the {len(measured)} measured trials of {mirror.shown(folder)} lies "
            "in this space; leave points out, or widen the axes"
        )
    return points


def _fits(point: Point, space: Space) -> bool:
    try:
        check_point(point, space)
    except InputError:
        return False
    return bool(point)
