"""`points: {from: RUN, best: 5}`: starts a search with the best points of an earlier one."""

from __future__ import annotations

from dpo_train.errors import InputError
from tune.config.checks import check
from tune.config.schema import SearchConfig
from tune.config.space import Point, Space, check_point
from tune.run_folder.folder import find_run
from tune.run_folder.records import Records


def with_earlier_points(config: SearchConfig) -> SearchConfig:
    """Return the config with an earlier search's points in place of that search's name.

    These are the points of its best trials, by this search's objective, that lie in this search's
    space. Raises InputError if there are none, or if there is no such run.
    """
    earlier = config.points
    if isinstance(earlier, list):
        return config
    folder = find_run(earlier.run)
    records = Records(folder, config.goal)
    for damaged in records.damaged:
        damaged.warn(sets_aside=False)
    measured = [trial for trial in records.searched if trial.metrics]
    points: list[Point] = []
    for trial in records.ranked(measured):
        is_new = trial.config not in points and _fits(trial.config, config.space)
        if len(points) < earlier.best and is_new:
            points.append(trial.config)
    if not points:
        raise InputError(
            f"points: none of the {len(measured)} evaluated trials of {folder} lies in this "
            "search's space; leave points out, or widen the axes"
        )
    return check(config.model_copy(update={"points": points}))


def _fits(point: Point, space: Space) -> bool:
    try:
        check_point(point, space)
    except InputError:
        return False
    return bool(point)
