"""Manages exported weights in `best/` and `winner/`: which are kept, and which becomes the winner.

A folder gets its name only when it is complete. For a run at a URL, exports are stored only there
and are downloaded where they are read.
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
"""The file in an exported folder that has its ExportStamp."""


class ExportStamp(BaseModel):
    """Says which trial's weights an exported folder holds, and at which report."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    trial: str
    """The run that was trained."""
    config: Point
    report: Report
    """The report at which the weights were exported."""
    configuration: str | None = None
    """The id of the search's trial that the run confirms; None for a trial of the search itself."""

    @property
    def searched(self) -> str:
        """The id of the search's trial that has this configuration, whatever the seed."""
        return self.configuration or self.trial

    @property
    def pairs_seen(self) -> int:
        """The pairs that were trained on until the export."""
        return int(self.report["pairs_seen"])

    @classmethod
    def read(cls, folder: Path) -> ExportStamp:
        """Reads the stamp of an exported folder. Raises OSError."""
        return cls.model_validate_json((folder / STAMP).read_text())

    def write(self, folder: Path) -> None:
        """Writes the stamp into an exported folder."""
        (folder / STAMP).write_text(self.model_dump_json(indent=1, exclude_none=True))


@dataclass(frozen=True)
class Export:
    """A complete exported folder."""

    folder: Path
    stamp: ExportStamp

    @property
    def trial_report(self) -> TrialReport:
        """The id of the run and the report at which it was exported."""
        return self.stamp.trial, self.stamp.report


@dataclass(frozen=True)
class Rivals:
    """The settings by which a worker decides whether a report may still win."""

    objective: Objective
    keep: int
    """How many of the best configurations keep their exports."""
    held_out: int = 0
    """How many held-out pairs were measured."""


def exports(records: Records) -> list[Export]:
    """Returns the best export of each configuration, the best first.

    With two objectives they are sorted front by front.
    """
    return _in_order(records, _best_of_each(records, _recorded(records)))


def export_of(records: Records, trial_id: str) -> Path | None:
    """Returns the folder of a run's best export; None if it has no export."""
    own = _all_exports(records.folder, trial_id)
    return next((each.folder for each in _in_order(records, own)), None)


def offer_export(
    run: RunFolder, stamp: ExportStamp, rivals: Rivals, export: Callable[[Path], None]
) -> None:
    """Exports the trial's weights if its report may still win, or if its configuration may be among
    the `keep` best. Raises DiskFull.

    A finalist's run with another seed competes only with its own reports: if the configuration
    wins, its best run must have an export. Workers only add folders, `best/<trial>/<pairs_seen>/`.
    The driver alone removes them: it knows the values of each held-out pair, and so which export is
    the best.
    """
    if not rivals.objective.allows(stamp.report) or _is_far_behind(run, stamp, rivals):
        return
    folder = run.export(stamp.trial, stamp.pairs_seen)
    partial = folder.with_name(".part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    exported = partial / folder.name  # the export may begin other folders beside this one
    with discarding_partial(partial):
        export(exported)
        stamp.write(exported)
        write_checksums(exported)
    shutil.rmtree(folder, ignore_errors=True)
    exported.replace(folder)
    shutil.rmtree(partial, ignore_errors=True)
    mirror.hand_over(folder)


def _is_far_behind(run: RunFolder, stamp: ExportStamp, rivals: Rivals) -> bool:
    """Returns whether a report is so far behind the exported ones that the rule can't choose it.

    A worker knows the values of the exported reports, but not those of each pair.
    """
    objective = rivals.objective
    best_of_runs: dict[str, float] = {}
    best_of_others: dict[str, float] = {}
    for existing in (each.stamp for each in _all_exports(run)):
        worth = objective.worth(existing.report)
        best_of_runs[existing.trial] = max(worth, best_of_runs.get(existing.trial, worth))
        if existing.searched != stamp.searched:
            other = existing.searched
            best_of_others[other] = max(worth, best_of_others.get(other, worth))
    ahead = [best_of_runs.get(stamp.trial, -math.inf)]
    if stamp.configuration is None and objective.second is None:
        ahead += sorted(best_of_others.values(), reverse=True)[rivals.keep - 1 : rivals.keep]
    worth = objective.worth(stamp.report)
    return any(worth + _slack(objective, worth, best, rivals.held_out) < best for best in ahead)


def _slack(objective: Objective, one: float, other: float, held_out: int) -> float:
    """Returns twice the standard error of the difference of two shares. It treats them as if they
    were measured on different pairs.

    This is more than the paired standard error, by which the driver decides.
    """
    if not objective.is_share or held_out < 2 or not math.isfinite(other):
        return 0.0
    return 2 * math.sqrt((one * (1 - one) + other * (1 - other)) / (held_out - 1))


def prune_exports(records: Records, keep: int, finalists: Sequence[str] = ()) -> None:
    """Removes exports that are no longer needed; the driver calls it when a trial has ended.

    It keeps the best export of each of the `keep` best configurations and of each finalist. It also
    keeps the best export of the finalists' first runs, those before the new seeds: the winner is
    compared with it.
    """
    existing = _recorded(records)
    best = _in_order(records, _best_of_each(records, existing))
    kept = {each.folder for each in best[:keep]}
    kept.update(each.folder for each in best if each.stamp.searched in finalists)
    before_new_seeds = [each for each in existing if each.stamp.trial in finalists]
    kept.update([each.folder for each in _in_order(records, before_new_seeds)][:1])
    open_trials = {record.id for record in records.open_trials()}
    for each in existing:
        if each.folder not in kept and each.stamp.trial not in open_trials:
            _remove_export(each.folder)


def prune_own_exports(records: Records, trial_id: str) -> None:
    """Removes a running trial's exports that can't be its best; the driver calls it at a report."""
    own = _all_exports(records.folder, trial_id)
    near = records.judge.near_best([each.trial_report for each in own])
    for each, may_win in zip(own, near, strict=True):
        if not may_win:
            _remove_export(each.folder)


def drop_later_exports(run: RunFolder, trial_id: str, saved: int) -> None:
    """Removes what a trial exported after the saved state from which it continues."""
    for folder in run.exports_of(trial_id).glob("*"):
        if not folder.name.isdigit():
            shutil.rmtree(folder, ignore_errors=True)
    for found in mirror.find(run.exports_of(trial_id), f"[0-9]*/{CHECKSUMS}"):
        if int(found.parent.name) > saved:
            mirror.remove(found.parent)


def _remove_export(folder: Path) -> None:
    mirror.remove(folder)
    with contextlib.suppress(OSError):  # the trial is writing its next export there
        folder.parent.rmdir()


def _best_of_each(records: Records, found: list[Export]) -> list[Export]:
    """Returns the best export of each configuration."""
    by_configuration: dict[str, list[Export]] = {}
    for each in found:
        by_configuration.setdefault(each.stamp.searched, []).append(each)
    return [_in_order(records, own)[0] for own in by_configuration.values()]


def _in_order(records: Records, found: list[Export]) -> list[Export]:
    """Returns the exports, the best first and those of excluded trials last."""
    allowed = [each for each in found if not records.is_excluded(each.stamp.trial)]
    order = records.judge.best_first([each.trial_report for each in allowed])
    excluded = [each for each in found if records.is_excluded(each.stamp.trial)]
    return [allowed[index] for index in order] + excluded


def _recorded(records: Records) -> list[Export]:
    """Returns the exports of trials that have a record. A trial with a damaged record has none."""
    return [each for each in _all_exports(records.folder) if each.stamp.trial in records.trials]


def _all_exports(run: RunFolder, trial: str = "*") -> list[Export]:
    """Returns the exports of all trials, or of one."""
    stamps = mirror.complete_texts(run.best, f"{trial}/[0-9]*/{STAMP}")
    found = [Export(path.parent, ExportStamp.model_validate_json(text)) for path, text in stamps]
    return sorted(found, key=lambda each: each.folder)


def promote_to_winner(records: Records, chosen: str | None = None) -> ExportStamp | None:
    """Finds the best export that is allowed to win, copies it to `winner/`, and returns its stamp.
    Returns None if there is no such export.

    `chosen` limits the choice to one configuration. A damaged export is skipped with a warning.
    """
    # The best export whose checksums match.
    run = records.folder
    found = [
        each
        for each in _recorded(records)
        if records.objective.allows(each.stamp.report)
        and not records.is_excluded(each.stamp.trial)
        and (chosen is None or each.stamp.searched == chosen)
    ]
    while found:
        best = _in_order(records, _best_of_each(records, found))[0]
        folder = best.folder
        if checksums_match(mirror.pull(folder)):
            break
        print(
            f"warning: {mirror.shown(folder)} is damaged; the next best export is used",
            flush=True,
        )
        found = [each for each in found if each.folder != folder]
    if not found:
        return None
    # Replace winner/ only with a complete copy.
    partial, old = run.path / ".winner.part", run.path / ".winner.old"
    shutil.rmtree(partial, ignore_errors=True)
    with discarding_partial(partial):
        shutil.copytree(folder, partial)
    shutil.rmtree(old, ignore_errors=True)
    if run.winner.exists():
        run.winner.replace(old)
    partial.replace(run.winner)
    shutil.rmtree(old, ignore_errors=True)
    mirror.push(run.winner)
    mirror.forget(folder)
    return best.stamp
