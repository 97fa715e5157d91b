"""What a person asks of a running search from elsewhere, by files in its run folder.

No server is needed, and any machine that sees the folder can ask. The driver looks at every report
and wherever it could start a trial.
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
from tune.run_folder.records import ENDED
from tune.search.resume import EXHAUSTED, how_to_grow, is_finished


def stop(run_folder: RunLike, trial: str) -> None:
    """Asks a search to end a trial at its next step. Raises InputError."""
    folder = find_run(run_folder)
    records = open_run(folder).records
    if (record := records.find(trial)).state in ENDED:
        raise InputError(f"{trial} has ended already ({record.state})")
    _ask(folder, Request(kind="stop", trial=trial))


def clone(run_folder: RunLike, trial: str, changes: Overrides) -> Point:
    """Asks a search to try a trial's point soon, with changes; returns the point.

    Axes that the changes call to life are drawn. Raises InputError.
    """
    folder = find_run(run_folder)
    run = open_run(folder)
    if is_finished(run):
        command = how_to_grow(run)
        advice = f"let it grow: {command}" if command else EXHAUSTED
        raise InputError(f"{folder} has ended; {advice}")
    config, records = run.config, run.records
    point: Point = {**records.find(trial).config, **changes}
    for path, axis in config.space.items():
        if path in point and path not in changes and not is_active(axis, point):
            del point[path]  # the changes leave it without a meaning
    check_point(point, config.space)
    config.trial(point)
    _ask(folder, Request(kind="clone", trial=trial, point=point))
    return point


def _ask(folder: RunFolder, request: Request) -> None:
    asked = folder.requests / str(time.time_ns())
    asked.mkdir(parents=True)
    write_atomically(asked / FILE, request.model_dump_json(indent=1))
