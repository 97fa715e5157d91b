"""Records survive a power cut, because they are synced to the disk before they count."""

import os
import threading
from pathlib import Path

import pytest

from dpo_train.storage import files
from tests.helpers.driver import Driver, finish, held_out
from tune.config.objective import Objective
from tune.run_folder.paths import RunFolder
from tune.run_folder.records import Records
from tune.run_folder.run_info import create_run
from tune.run_folder.step import Step


def unfinished(name: str) -> str:
    """Return the temporary name under which this thread writes a file before it renames it."""
    return f".{name}.{os.getpid()}.{threading.get_native_id()}.part"


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the names of synced files and folders, and of renamed files, in their order."""
    found: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def note_sync(descriptor: int) -> None:
        found.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def note_replace(path: Path, target: Path) -> Path:
        found.append(f"-> {target.name}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_replace)
    return found


def test_a_durable_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, synced: list[str]
) -> None:
    files.write_durably(tmp_path / "a.json", "{}")
    assert (tmp_path / "a.json").read_text() == "{}"
    assert synced == [unfinished("a.json"), "-> a.json", tmp_path.name]


def test_the_record_of_a_trial_is_durable_when_it_begins_and_when_it_ends(
    tmp_path: Path, synced: list[str]
) -> None:
    create_run(RunFolder.at(tmp_path), Path(), "cpu")
    assert synced == [unfinished("run.json"), "-> run.json", tmp_path.name]
    records = Records(RunFolder.at(tmp_path), Objective.of("eval/accuracy"))
    records.begin_driver_session()
    records.add("a", {})
    synced.clear()
    records.begin("a")
    assert synced == [unfinished("a.json"), "-> a.json", "trials"]
    synced.clear()
    report = {"pairs_seen": 64, "eval/accuracy": 0.9, "eval/drift": 1.0}
    records.report("a", Step(report, 1.0, 1.0, held_out(0.9)))
    # A sync takes some milliseconds, and a trial may report often.
    assert synced == ["-> a.npz", "-> a.json", "-> run.json"]
    synced.clear()
    records.end("a", "finished")
    assert synced == ["a.npz", unfinished("a.json"), "-> a.json", "trials"]


def test_a_trials_state_is_removed_after_its_end_is_on_the_disk(
    tmp_path: Path, synced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(tmp_path)
    trial = driver.start()
    dropped: list[int] = []
    drop = "tune.run_folder.trial_state.drop_state"
    monkeypatch.setattr(drop, lambda *_: dropped.append(len(synced)))
    finish(driver, trial, 0.9)
    assert synced[: dropped[0]][-2:] == [f"-> {trial.config['task'].name}.json", "trials"]


def test_a_search_ends_if_the_end_of_a_trial_can_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_run(RunFolder.at(tmp_path), Path(), "cpu")
    records = Records(RunFolder.at(tmp_path), Objective.of("eval/accuracy"))
    records.begin_driver_session()
    records.add("a", {})

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        records.end("a", "finished")
    assert records.unwritten is not None
