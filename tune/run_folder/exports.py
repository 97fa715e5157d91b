"""Exported weights in `best/` and `winner/`: which are kept, and which one becomes the winner.

Every folder appears under its name only when it is complete. Of a run on a URL the exports lie
there alone, and are brought where they are read.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dpo_train.storage import mirror
from dpo_train.storage.disk import discarding_partial
from dpo_train.storage.files import checksums_match, write_checksums
from dpo_train.storage.mirror import CHECKSUMS
from tune.config.objective import Objective, Report

STAMP = "trial.json"
"""In an exported folder: which trial, its values, and the report at which it was written."""


_Export = tuple[Path, dict[str, Any]]


def exports(run: Path, objective: Objective) -> list[_Export]:
    """(folder, stamp) of the best export of each configuration that has one, the best first; with
    two objectives front by front."""
    return _ranked(_best_of_each(_all_exports(run, objective)), objective)


def configuration(stamp: dict[str, Any]) -> str:
    """The trial of the search whose configuration an export has, whatever its seed."""
    return str(stamp.get("configuration") or stamp["trial"])


def export_of(run: Path, objective: Objective, trial_id: str) -> Path | None:
    """The best export of one run."""
    found = _all_exports(run, objective)
    return next((folder for folder, stamp in found if stamp["trial"] == trial_id), None)


def offer_export(
    run: Path,
    trial_id: str,
    point: dict[str, Any],
    report: Report,
    objective: Objective,
    keep: int,
    export: Callable[[Path], None],
    confirms: str | None = None,
) -> None:
    """Exports the trial's weights if this report is among the k best of all configurations, and the
    best of its own; a finalist's runs with other seeds vie with their own configuration alone, for
    what wins must lie there. Raises DiskFull.

    Trials only add, each to `best/<trial>/<pairs_seen>/`, and the driver alone removes: what it
    saw as weak can't become another trial's best between its look and its hand.
    """
    there = exports(run, objective)
    own = [stamp for _, stamp in there if configuration(stamp) == (confirms or trial_id)]
    if own and objective.key(report) <= objective.key(own[0]["report"]):
        return
    stamp = {"trial": trial_id, "config": point, "report": report}
    if not own and confirms is None:
        # Behind its equals, for the sort is stable.
        kept = _ranked([*there, (run, stamp)], objective)[:keep]
        if all(other is not stamp for _, other in kept):
            return
    folder = run / "best" / trial_id / str(int(report["pairs_seen"]))
    part = folder.with_name(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    made = part / folder.name  # in a folder of its own, with whatever the export begins beside it
    if confirms is not None:
        stamp["configuration"] = confirms
    with discarding_partial(part):
        export(made)
        (made / STAMP).write_text(json.dumps(stamp, indent=1))
        write_checksums(made)
    shutil.rmtree(folder, ignore_errors=True)
    made.replace(folder)
    shutil.rmtree(part, ignore_errors=True)
    mirror.hand_over(folder)


def prune_exports(
    run: Path, objective: Objective, keep: int, finalists: Sequence[str] = ()
) -> None:
    """Leaves the best export of each of the k best configurations and of each finalist's, and that
    of the best finalist before its new seeds, with which a winner is compared; for the driver."""
    seen = _all_exports(run, objective)
    best = _ranked(_best_of_each(seen), objective)
    kept = {folder for folder, _ in best[:keep]}
    kept.update(folder for folder, stamp in best if configuration(stamp) in finalists)
    kept.update([folder for folder, stamp in seen if stamp["trial"] in finalists][:1])
    for folder, _ in seen:
        if folder not in kept:
            mirror.remove(folder)
            with contextlib.suppress(OSError):  # the trial is writing its next one there
                folder.parent.rmdir()


def drop_later_exports(run: Path, trial_id: str, saved: int) -> None:
    """Removes what a trial exported past the state that it goes on from."""
    for folder in (run / "best" / trial_id).glob("*"):
        if not folder.name.isdigit():
            shutil.rmtree(folder, ignore_errors=True)
    for found in mirror.find(run / "best" / trial_id, f"[0-9]*/{CHECKSUMS}"):
        if int(found.parent.name) > saved:
            mirror.remove(found.parent)


def _best_of_each(ranked: list[_Export]) -> list[_Export]:
    best: dict[str, _Export] = {}
    for folder, stamp in ranked:
        best.setdefault(configuration(stamp), (folder, stamp))
    return list(best.values())


def _ranked(exports: list[_Export], objective: Objective) -> list[_Export]:
    return objective.ranked(exports, lambda export: export[1]["report"])


def _all_exports(run: Path, objective: Objective) -> list[_Export]:
    stamps = mirror.complete_texts(run / "best", f"*/[0-9]*/{STAMP}")
    found = [(path.parent, json.loads(text)) for path, text in stamps]
    return sorted(found, key=lambda item: objective.key(item[1]["report"]), reverse=True)


def promote_to_winner(
    run: Path, objective: Objective, chosen: str | None = None
) -> dict[str, Any] | None:
    """Copies the best export to `winner/` and returns its stamp; None if nothing was exported.

    With `chosen`, the best export of that configuration. One that is damaged is passed over.
    """
    ranked = _all_exports(run, objective)
    if chosen is not None:
        ranked = [item for item in ranked if configuration(item[1]) == chosen]
    while ranked and not checksums_match(mirror.pull(ranked[0][0])):
        print(
            f"warning: {mirror.shown(ranked[0][0])} is damaged; the next best export is taken",
            flush=True,
        )
        ranked.pop(0)
    if not ranked:
        return None
    folder, stamp = ranked[0]
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
