"""Exported weights in `best/` and `winner/`: which are kept, and which one becomes the winner.

Every folder appears under its name only when it is complete. Of a run on a URL the exports lie
there alone, and are brought where they are read.
"""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from dpo_train.storage import mirror
from dpo_train.storage.disk import discarding_partial
from dpo_train.storage.files import checksums_match, write_checksums
from dpo_train.storage.mirror import CHECKSUMS
from tune.config.objective import Objective, Report
from tune.config.space import Point
from tune.run_folder.judge import TrialReport
from tune.run_folder.paths import RunFolder
from tune.run_folder.records import Records

STAMP = "trial.json"
"""In an exported folder: which trial, its values, and the report at which it was written."""


class ExportStamp(BaseModel):
    """Whose weights an exported folder holds, and what they had."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    trial: str
    """The run that was trained."""
    config: Point
    report: Report
    """At which it was written."""
    configuration: str | None = None
    """The trial of the search that the run confirms; None of a trial of the search itself."""

    @property
    def searched(self) -> str:
        """The trial of the search whose configuration the export has, whatever its seed."""
        return self.configuration or self.trial

    @property
    def pairs_seen(self) -> int:
        return int(self.report["pairs_seen"])

    @classmethod
    def read(cls, folder: Path) -> ExportStamp:
        """Of an exported folder. Raises OSError."""
        return cls.model_validate_json((folder / STAMP).read_text())

    def write(self, folder: Path) -> None:
        (folder / STAMP).write_text(self.model_dump_json(indent=1, exclude_none=True))


@dataclass(frozen=True)
class Export:
    """An exported folder that is whole."""

    folder: Path
    stamp: ExportStamp

    @property
    def trial_report(self) -> TrialReport:
        return self.stamp.trial, self.stamp.report


@dataclass(frozen=True)
class Rivals:
    """By what a worker decides whether a report may still win."""

    objective: Objective
    keep: int
    """The best configurations whose exports are kept."""
    held_out: int = 0
    """Pairs that were measured."""


def exports(records: Records) -> list[Export]:
    """The best export of each configuration that has one, the best first; with two objectives front
    by front."""
    return _in_order(records, _best_of_each(records, _recorded(records)))


def export_of(records: Records, trial_id: str) -> Path | None:
    """The best export of one run."""
    own = _all_exports(records.folder, trial_id)
    return next((each.folder for each in _in_order(records, own)), None)


def offer_export(
    run: RunFolder, stamp: ExportStamp, rivals: Rivals, export: Callable[[Path], None]
) -> None:
    """Exports the trial's weights if this report may still win, or be one of the k best
    configurations; a finalist's runs with other seeds vie with their own configuration alone, for
    what wins must lie there. Raises DiskFull.

    Trials only add, each to `best/<trial>/<pairs_seen>/`, and the driver alone removes: it knows
    what each held-out pair had, and so which of them is the best.
    """
    if not rivals.objective.allows(stamp.report) or _is_out(run, stamp, rivals):
        return
    folder = run.export(stamp.trial, stamp.pairs_seen)
    part = folder.with_name(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    made = part / folder.name  # in a folder of its own, with whatever the export begins beside it
    with discarding_partial(part):
        export(made)
        stamp.write(made)
        write_checksums(made)
    shutil.rmtree(folder, ignore_errors=True)
    made.replace(folder)
    shutil.rmtree(part, ignore_errors=True)
    mirror.hand_over(folder)


def _is_out(run: RunFolder, stamp: ExportStamp, rivals: Rivals) -> bool:
    """Whether the report of a stamp is so far behind that the rule can't choose it, as far as a
    worker sees: it knows the values of what was exported, and not those of each pair."""
    objective = rivals.objective
    of_runs: dict[str, float] = {}
    of_others: dict[str, float] = {}
    for existing in (each.stamp for each in _all_exports(run)):
        worth = objective.worth(existing.report)
        of_runs[existing.trial] = max(worth, of_runs.get(existing.trial, worth))
        if existing.searched != stamp.searched:
            whose = existing.searched
            of_others[whose] = max(worth, of_others.get(whose, worth))
    ahead = [of_runs.get(stamp.trial, -math.inf)]
    if stamp.configuration is None and objective.second is None:
        ahead += sorted(of_others.values(), reverse=True)[rivals.keep - 1 : rivals.keep]
    worth = objective.worth(stamp.report)
    return any(worth + _slack(objective, worth, best, rivals.held_out) < best for best in ahead)


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
    there = _recorded(records)
    best = _in_order(records, _best_of_each(records, there))
    kept = {each.folder for each in best[:keep]}
    kept.update(each.folder for each in best if each.stamp.searched in finalists)
    searched = [each for each in there if each.stamp.trial in finalists]
    kept.update([each.folder for each in _in_order(records, searched)][:1])
    open_trials = {record.id for record in records.open_trials()}
    for each in there:
        if each.folder not in kept and each.stamp.trial not in open_trials:
            _remove_export(each.folder)


def prune_own_exports(records: Records, trial_id: str) -> None:
    """For the driver, at a report: leaves of a trial that goes on what may still be its best."""
    own = _all_exports(records.folder, trial_id)
    near = records.judge.near_best([each.trial_report for each in own])
    for each, may_win in zip(own, near, strict=True):
        if not may_win:
            _remove_export(each.folder)


def drop_later_exports(run: RunFolder, trial_id: str, saved: int) -> None:
    """Removes what a trial exported past the state that it goes on from."""
    for folder in run.exports_of(trial_id).glob("*"):
        if not folder.name.isdigit():
            shutil.rmtree(folder, ignore_errors=True)
    for found in mirror.find(run.exports_of(trial_id), f"[0-9]*/{CHECKSUMS}"):
        if int(found.parent.name) > saved:
            mirror.remove(found.parent)


def _remove_export(folder: Path) -> None:
    mirror.remove(folder)
    with contextlib.suppress(OSError):  # the trial is writing its next one there
        folder.parent.rmdir()


def _best_of_each(records: Records, found: list[Export]) -> list[Export]:
    """Of each configuration the best of its exports."""
    of_each: dict[str, list[Export]] = {}
    for each in found:
        of_each.setdefault(each.stamp.searched, []).append(each)
    return [_in_order(records, own)[0] for own in of_each.values()]


def _in_order(records: Records, found: list[Export]) -> list[Export]:
    """The best first, those of trials that can't win last."""
    rivals = [each for each in found if not records.is_out(each.stamp.trial)]
    order = records.judge.best_first([each.trial_report for each in rivals])
    out = [each for each in found if records.is_out(each.stamp.trial)]
    return [rivals[index] for index in order] + out


def _recorded(records: Records) -> list[Export]:
    """Those of trials that have a record: a damaged one leaves its trial's weights behind."""
    return [each for each in _all_exports(records.folder) if each.stamp.trial in records.trials]


def _all_exports(run: RunFolder, trial: str = "*") -> list[Export]:
    """Of all trials, or of one."""
    stamps = mirror.complete_texts(run.best, f"{trial}/[0-9]*/{STAMP}")
    found = [Export(path.parent, ExportStamp.model_validate_json(text)) for path, text in stamps]
    return sorted(found, key=lambda each: each.folder)


def promote_to_winner(records: Records, chosen: str | None = None) -> ExportStamp | None:
    """Copies the best export that may win to `winner/` and returns its stamp; None without one.

    With `chosen`, the best export of that configuration. One that is damaged is passed over.
    """
    run = records.folder
    found = [
        each
        for each in _recorded(records)
        if records.objective.allows(each.stamp.report)
        and not records.is_out(each.stamp.trial)
        and (chosen is None or each.stamp.searched == chosen)
    ]
    while found:
        best = _in_order(records, _best_of_each(records, found))[0]
        folder = best.folder
        if checksums_match(mirror.pull(folder)):
            break
        print(
            f"warning: {mirror.shown(folder)} is damaged; the next best export is taken",
            flush=True,
        )
        found = [each for each in found if each.folder != folder]
    if not found:
        return None
    part, old = run.path / ".winner.part", run.path / ".winner.old"
    shutil.rmtree(part, ignore_errors=True)
    with discarding_partial(part):
        shutil.copytree(folder, part)
    shutil.rmtree(old, ignore_errors=True)
    if run.winner.exists():
        run.winner.replace(old)
    part.replace(run.winner)
    shutil.rmtree(old, ignore_errors=True)
    mirror.push(run.winner)
    mirror.forget(folder)
    return best.stamp
