"""Reads the trials of a run folder, for tests that have only its path."""

from pathlib import Path

from tune.run_folder.damaged import DamagedFile
from tune.run_folder.paths import RunFolder
from tune.run_folder.trial_record import TrialRecord, read_records
from tune.run_folder.trial_state import saved_pairs


def records_of(run: Path) -> list[TrialRecord]:
    """Return all trial records of a run; none may be damaged."""
    damaged: list[DamagedFile] = []
    records = list(read_records(RunFolder.at(run), damaged.append))
    assert damaged == []
    return records


def saved_pairs_of(run: Path, trial: str) -> list[int]:
    """Return the pairs_seen of each saved state of a trial."""
    return saved_pairs(RunFolder.at(run), trial)
