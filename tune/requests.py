"""What a person asks of a running search from elsewhere, by files in its run folder.

No server is needed, and any machine that sees the folder can ask. The driver looks at every report
and wherever it could start a trial.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from dpo_train import mirror
from dpo_train.errors import InputError
from dpo_train.files import write_atomically
from tune import checkpoints
from tune.config import SearchConfig
from tune.inbox import FILE, WEIGHTS, Inbox, Request
from tune.records import ENDED, Records, find_run
from tune.runs import is_finished, opened
from tune.space import Point, check_point, is_active


def stop(run_folder: str | Path, trial: str) -> None:
    """Asks a search to end a trial at its next report. Raises InputError."""
    folder = find_run(run_folder)
    _, records = opened(folder)
    if (record := records.find(trial)).state in ENDED:
        raise InputError(f"{trial} has ended already ({record.state})")
    _ask(folder, Request(kind="stop", trial=trial))


def clone(run_folder: str | Path, trial: str, changes: dict[str, Any], warm: bool = False) -> Point:
    """Asks a search to try a trial's point soon, with changes; returns the point.

    Axes that the changes call to life are drawn. With `warm` the clone starts from that trial's
    exported weights; its reference stays the base. Raises InputError.
    """
    folder = find_run(run_folder)
    if is_finished(folder):
        place = mirror.shown(folder)
        raise InputError(f"{place} has ended; let it grow: dpo-tune resume {place} --trials +8")
    config, records = opened(folder)
    point = {**records.find(trial).config, **changes}
    for path, axis in config.space.items():
        if path in point and path not in changes and not is_active(axis, point):
            del point[path]  # the changes leave it without a meaning
    check_point(point, config.space)
    config.trial(point)
    request = Request(kind="clone", trial=trial, point=point, warm=warm)
    if not warm:
        _ask(folder, request)
        return point
    for _ in range(3):
        try:
            _ask(folder, request, _exported(config, records, trial, point))
        except (FileNotFoundError, shutil.Error):  # a better one took its place just now
            continue
        return point
    raise InputError(f"--warm: {trial} improves faster than its weights can be copied; try again")


def _ask(folder: Path, request: Request, weights: Path | None = None) -> None:
    asked = Inbox(folder).folder / str(time.time_ns())
    asked.mkdir(parents=True)
    try:
        if weights is not None:
            shutil.copytree(mirror.pull(weights), asked / WEIGHTS)
            mirror.hand_over(asked / WEIGHTS)
            mirror.forget(weights)
        write_atomically(asked / FILE, request.model_dump_json(indent=1))
    except BaseException:
        mirror.remove(asked)
        raise


def _exported(config: SearchConfig, records: Records, trial: str, point: Point) -> Path:
    exports = checkpoints.exports(records.folder, records.objective)
    there = {stamp["trial"]: (path, stamp) for path, stamp in exports}
    if trial not in there:
        known = ", ".join(there) or "none yet"
        raise InputError(
            f"--warm: {trial} has no exported weights, only the {config.keep_best} best trials "
            f"have: {known}"
        )
    path, stamp = there[trial]
    before, after = config.trial(stamp["config"]).lora, config.trial(point).lora
    if before != after:
        raise InputError(f"--warm: {trial} was trained with lora {before}, this is {after}")
    return path
