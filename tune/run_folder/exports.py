"""Exported weights in `best/` and `winner/`: which are kept, and which one becomes the winner.

Every folder appears under its name only when it is complete. Of a run on a URL the exports lie
there alone, and are brought where they are read.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dpo_train.storage import mirror
from dpo_train.storage.disk import discarding_partial
from dpo_train.storage.files import checksums_match, write_checksums
from dpo_train.storage.mirror import CHECKSUMS
from tune.config.objective import Objective, Report
from tune.run_folder.judge import TrialReport
from tune.run_folder.records import Records

STAMP = "trial.json"
"""In an exported folder: which trial, its values, and the report at which it was written."""


_Export = tuple[Path, dict[str, Any]]


def exports(records: Records) -> list[_Export]:
    """(folder, stamp) of the best export of each configuration that has one, the best first; with
    two objectives front by front."""
    return _in_order(records, _best_of_each(records, _all_exports(records.folder)))


def configuration(stamp: dict[str, Any]) -> str:
    """The trial of the search whose configuration an export has, whatever its seed."""
    return str(stamp.get("configuration") or stamp["trial"])


def export_of(records: Records, trial_id: str) -> Path | None:
    """The best export of one run."""
    own = _all_exports(records.folder, trial_id)
    return next((folder for folder, _ in _in_order(records, own)), None)


def offer_export(
    run: Path,
    trial_id: str,
    point: dict[str, Any],
    report: Report,
    objective: Objective,
    keep: int,
    export: Callable[[Path], None],
    confirms: str | None = None,
    held_out: int = 0,
) -> None:
    """Exports the trial's weights if this report may still win, or be one of the k best
    configurations; a finalist's runs with other seeds vie with their own configuration alone, for
    what wins must lie there. `held_out` pairs were measured. Raises DiskFull.

    Trials only add, each to `best/<trial>/<pairs_seen>/`, and the driver alone removes: it knows
    what each of so many held-out pairs had, and so which of them is the best.
    """
    stamp = {"trial": trial_id, "config": point, "report": report}
    if confirms is not None:
        stamp["configuration"] = confirms
    if not objective.allows(report) or _is_out(run, stamp, objective, keep, held_out):
        return
    folder = run / "best" / trial_id / str(int(report["pairs_seen"]))
    part = folder.with_name(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    made = part / folder.name  # in a folder of its own, with whatever the export begins beside it
    with discarding_partial(part):
        export(made)
        (made / STAMP).write_text(json.dumps(stamp, indent=1))
        write_checksums(made)
    shutil.rmtree(folder, ignore_errors=True)
    made.replace(folder)
    shutil.rmtree(part, ignore_errors=True)
    mirror.hand_over(folder)


def _is_out(
    run: Path, stamp: dict[str, Any], objective: Objective, keep: int, held_out: int
) -> bool:
    """Whether the report of a stamp is so far behind that the rule can't choose it, as far as a
    worker sees: it knows the values of what was exported, and not those of each pair."""
    of_runs: dict[str, float] = {}
    of_others: dict[str, float] = {}
    for _, there in _all_exports(run):
        worth = objective.worth(there["report"])
        of_runs[there["trial"]] = max(worth, of_runs.get(there["trial"], worth))
        if configuration(there) != configuration(stamp):
            whose = configuration(there)
            of_others[whose] = max(worth, of_others.get(whose, worth))
    rivals = [of_runs.get(stamp["trial"], -math.inf)]
    if "configuration" not in stamp and objective.second is None:
        rivals += sorted(of_others.values(), reverse=True)[keep - 1 : keep]
    worth = objective.worth(stamp["report"])
    return any(worth + _slack(objective, worth, rival, held_out) < rival for rival in rivals)


def _slack(objective: Objective, one: float, other: float, held_out: int) -> float:
    """Two standard errors of the difference of two shares as if they were of different pairs: more
    than the paired one, by which the driver goes."""
    if not objective.is_share or held_out < 2 or not math.isfinite(other):
        return 0.0
    return 2 * math.sqrt((one * (1 - one) + other * (1 - other)) / (held_out - 1))


def prune_exports(records: Records, keep: int, finalists: Sequence[str] = ()) -> None:
    """For the driver, when a trial has ended: leaves the best export of each of the k best
    configurations and of each finalist's, and that of the best finalist before its new seeds, with
    which a winner is compared."""
    there = _all_exports(records.folder)
    best = _in_order(records, _best_of_each(records, there))
    kept = {folder for folder, _ in best[:keep]}
    kept.update(folder for folder, stamp in best if configuration(stamp) in finalists)
    searched = [item for item in there if item[1]["trial"] in finalists]
    kept.update([folder for folder, _ in _in_order(records, searched)][:1])
    open_trials = {record.id for record in records.open_trials()}
    for folder, stamp in there:
        if folder not in kept and stamp["trial"] not in open_trials:
            _remove_export(folder)


def prune_own_exports(records: Records, trial_id: str) -> None:
    """For the driver, at a report: leaves of a trial that goes on what may still be its best."""
    own = _all_exports(records.folder, trial_id)
    for (folder, _), may_win in zip(own, records.judge.near_best(_reports(own)), strict=True):
        if not may_win:
            _remove_export(folder)


def drop_later_exports(run: Path, trial_id: str, saved: int) -> None:
    """Removes what a trial exported past the state that it goes on from."""
    for folder in (run / "best" / trial_id).glob("*"):
        if not folder.name.isdigit():
            shutil.rmtree(folder, ignore_errors=True)
    for found in mirror.find(run / "best" / trial_id, f"[0-9]*/{CHECKSUMS}"):
        if int(found.parent.name) > saved:
            mirror.remove(found.parent)


def _remove_export(folder: Path) -> None:
    mirror.remove(folder)
    with contextlib.suppress(OSError):  # the trial is writing its next one there
        folder.parent.rmdir()


def _best_of_each(records: Records, found: list[_Export]) -> list[_Export]:
    """Of each configuration the best of its exports."""
    of_each: dict[str, list[_Export]] = {}
    for item in found:
        of_each.setdefault(configuration(item[1]), []).append(item)
    return [_in_order(records, own)[0] for own in of_each.values()]


def _in_order(records: Records, found: list[_Export]) -> list[_Export]:
    return [found[index] for index in records.judge.best_first(_reports(found))]


def _reports(found: list[_Export]) -> list[TrialReport]:
    return [(stamp["trial"], stamp["report"]) for _, stamp in found]


def _all_exports(run: Path, trial: str = "*") -> list[_Export]:
    """Of all trials, or of one."""
    stamps = mirror.complete_texts(run / "best", f"{trial}/[0-9]*/{STAMP}")
    found = [(path.parent, json.loads(text)) for path, text in stamps]
    return sorted(found, key=lambda item: item[0])


def promote_to_winner(records: Records, chosen: str | None = None) -> dict[str, Any] | None:
    """Copies the best export that may win to `winner/` and returns its stamp; None without one.

    With `chosen`, the best export of that configuration. One that is damaged is passed over.
    """
    run = records.folder
    found = [
        item
        for item in _all_exports(run)
        if records.objective.allows(item[1]["report"])
        and (chosen is None or configuration(item[1]) == chosen)
    ]
    while found:
        folder, stamp = _in_order(records, _best_of_each(records, found))[0]
        if checksums_match(mirror.pull(folder)):
            break
        print(
            f"warning: {mirror.shown(folder)} is damaged; the next best export is taken",
            flush=True,
        )
        found = [item for item in found if item[0] != folder]
    if not found:
        return None
    part, old = run / ".winner.part", run / ".winner.old"
    shutil.rmtree(part, ignore_errors=True)
    with discarding_partial(part):
        shutil.copytree(folder, part)
    shutil.rmtree(old, ignore_errors=True)
    if (run / "winner").exists():
        (run / "winner").replace(old)
    part.replace(run / "winner")
    shutil.rmtree(old, ignore_errors=True)
    mirror.push(run / "winner")
    mirror.forget(folder)
    return stamp
