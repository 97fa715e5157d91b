"""`dpo-tune stop` and `dpo-tune clone`: requests to a running search, as files in its run folder.

No server is needed, and any machine that sees the folder can make a request. The driver looks for
requests at every report and whenever it could start a trial.
"""

from __future__ import annotations

import time

from dpo_train.config_base import Overrides
from dpo_train.errors import InputError
from dpo_train.storage.files import write_atomically
from tune.config.space import Point, check_point, is_active
from tune.run_folder.folder import find_run, open_run
from tune.run_folder.inbox import FILE, Request
from tune.run_folder.paths import RunFolder, RunLike
from tune.run_folder.trial_record import ENDED
from tune.search.resume import EXHAUSTED, how_to_grow, is_finished


def stop(run_folder: RunLike, trial: str) -> None:
    """Request that a search stops a trial at its next step. Raises InputError."""
    folder = find_run(run_folder)
    records = open_run(folder).records
    if (record := records.find(trial)).state in ENDED:
        raise InputError(f"{trial} has already ended ({record.state}), so it can't be stopped")
    _write(folder, Request(kind="stop", trial=trial))


def clone(run_folder: RunLike, trial: str, changes: Overrides) -> Point:
    """Request that a search tries a trial's point again, with changes; return the new point.

    The sampler draws the axes that only the changes make active. Raises InputError.
    """
    folder = find_run(run_folder)
    run = open_run(folder)
    if is_finished(run):
        command = how_to_grow(run)
        advice = f"to give it more trials: {command}" if command else EXHAUSTED
        raise InputError(f"{folder} has ended; {advice}")
    config, records = run.config, run.records
    point: Point = {**records.find(trial).config, **changes}
    for path, axis in config.space.items():
        if path in point and path not in changes and not is_active(axis, point):
            del point[path]  # with the changes this axis is not active any more
    check_point(point, config.space)
    config.trial(point)
    _write(folder, Request(kind="clone", trial=trial, point=point))
    return point


def _write(folder: RunFolder, request: Request) -> None:
    request_folder = folder.requests / str(time.time_ns())
    request_folder.mkdir(parents=True)
    write_atomically(request_folder / FILE, request.model_dump_json(indent=1))
