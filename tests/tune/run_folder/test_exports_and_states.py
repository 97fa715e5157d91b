"""Exports and saved states in a run folder: which are kept, and which damage is noticed."""

import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dpo_train.storage import mirror
from dpo_train.storage.files import write_checksums
from tests.helpers.driver import held_out
from tune.config.objective import Bound, Objective
from tune.run_folder import exports, trial_state
from tune.run_folder.paths import RunFolder
from tune.run_folder.records import Records
from tune.run_folder.run_info import create_run
from tune.run_folder.step import Step

ACCURACY = Objective(metric="eval/accuracy", mode="max")
PAIRS = 100


@pytest.fixture
def records(tmp_path: Path) -> Records:
    create_run(RunFolder.at(tmp_path), Path(), "cpu")
    records = Records(RunFolder.at(tmp_path), ACCURACY)
    records.begin_driver_session()
    return records


def report(accuracy: float, pairs: int = 64) -> dict[str, float]:
    return {"eval/accuracy": accuracy, "eval/drift": 1.0, "pairs_seen": pairs}


def offer(
    records: Records,
    trial: str,
    accuracy: float,
    pairs: int = 64,
    confirms: str | None = None,
    keep: int = 2,
    finalists: tuple[str, ...] = (),
) -> bool:
    """Play a report of a trial: its worker offers the weights, then the driver gets the report."""
    exported: list[Path] = []

    def export(folder: Path) -> None:
        folder.mkdir()
        exported.append(folder)

    shown = report(accuracy, pairs)
    stamp = exports.ExportStamp(trial=trial, config={}, report=shown, configuration=confirms)
    rivals = exports.Rivals(records.objective, keep, PAIRS)
    exports.offer_export(records.folder, stamp, rivals, export)
    if trial not in records.trials:
        records.add(trial, {}, confirms=confirms)
    records.report(trial, Step(shown, 1.0, 1.0, held_out(accuracy)))
    exports.prune_own_exports(records, trial)
    records.end(trial, "finished")
    exports.prune_exports(records, keep, finalists)
    return bool(exported)


def kept(records: Records) -> list[str]:
    return [each.stamp.trial for each in exports.exports(records)]


def test_only_the_k_best_are_exported_and_kept(records: Records) -> None:
    assert offer(records, "a", 0.7)
    assert offer(records, "b", 0.6)
    assert not offer(records, "c", 0.4)
    assert offer(records, "d", 0.8)
    assert kept(records) == ["d", "a"]
    assert sorted(path.name for path in records.folder.best.iterdir()) == ["a", "d"]


def test_an_ended_trial_keeps_its_best_report_alone(records: Records) -> None:
    assert offer(records, "a", 0.7)
    assert not offer(records, "a", 0.5, pairs=128)
    assert offer(records, "a", 0.9, pairs=192)
    assert kept(records) == ["a"]
    assert [path.name for path in records.folder.exports_of("a").iterdir()] == ["192"]


def test_a_trial_that_goes_on_keeps_what_may_still_be_its_best(records: Records) -> None:
    """The worker exports every report within the range of luck. The driver, which knows each pair,
    keeps those within one paired standard error, and the later of equals once a trial has ended."""
    for pairs, accuracy in ((64, 0.70), (128, 0.695), (192, 0.705), (256, 0.69)):
        stamp = exports.ExportStamp(trial="a", config={}, report=report(accuracy, pairs))
        exports.offer_export(records.folder, stamp, exports.Rivals(ACCURACY, 1, 200), Path.mkdir)
        if pairs == 64:
            records.add("a", {})
        records.report("a", Step(report(accuracy, pairs), 1.0, 1.0, held_out(accuracy)))
        exports.prune_own_exports(records, "a")
    exports_folder = records.folder.exports_of("a")
    assert sorted(int(path.name) for path in exports_folder.iterdir()) == [64, 192]
    assert records.trials["a"].metrics["pairs_seen"] == 192
    records.end("a", "failed", "loss is nan")
    exports.prune_exports(records, 1)
    assert [path.name for path in exports_folder.iterdir()] == ["192"]


def test_an_export_added_while_the_driver_removes_others_survives(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = records.folder
    for trial, accuracy in (("a", 0.9), ("b", 0.8), ("c", 0.7)):
        records.add(trial, {})
        records.end(trial, "stopped")
        run.export(trial, 64).mkdir(parents=True)
        stamp = {"trial": trial, "config": {}, "report": report(accuracy)}
        (run.export(trial, 64) / exports.STAMP).write_text(json.dumps(stamp))
        write_checksums(run.export(trial, 64))
    remove = shutil.rmtree

    def add_then_remove(folder: Path, **options: bool) -> None:
        monkeypatch.setattr(shutil, "rmtree", remove)
        stamp = exports.ExportStamp(trial="c", config={}, report=report(0.95, pairs=128))
        exports.offer_export(run, stamp, exports.Rivals(ACCURACY, 2), lambda path: path.mkdir())
        remove(folder, **options)

    monkeypatch.setattr(shutil, "rmtree", add_then_remove)
    exports.prune_exports(records, 2)
    assert kept(records)[0] == "c"


def test_a_tie_goes_to_the_later_report(records: Records) -> None:
    offer(records, "a", 0.7, pairs=128)
    offer(records, "b", 0.7, pairs=64)
    assert kept(records) == ["a", "b"]
    stamp = exports.promote_to_winner(records)
    assert stamp is not None
    assert stamp.trial == "a"
    assert (records.folder.winner / exports.STAMP).exists()


def test_a_report_beyond_a_bound_is_neither_exported_nor_wins(records: Records) -> None:
    bounds = {"eval/drift": Bound(at_most=0.5)}
    bounded = Records(records.folder, ACCURACY.model_copy(update={"bounds": bounds}))
    bounded.begin_driver_session()
    assert offer(records, "a", 0.7)
    assert exports.promote_to_winner(bounded) is None
    assert not offer(bounded, "b", 0.9)


def test_a_finalists_exports_outlast_better_ones_of_others(records: Records) -> None:
    def again(trial: str, accuracy: float, confirms: str | None = None) -> None:
        offer(records, trial, accuracy, 64, confirms, 1, ("a",))

    again("a", 0.7)
    again("lucky", 0.9)
    again("a-again", 0.6, "a")
    assert kept(records) == ["lucky", "a"]
    again("a-third", 0.8, "a")
    assert exports.export_of(records, "a")  # the winner is compared with it
    shutil.rmtree(records.folder.exports_of("a"))
    shutil.rmtree(records.folder.exports_of("a-third"))
    again("a-fourth", 0.5, "a")
    stamp = exports.promote_to_winner(records, "a")
    assert stamp is not None
    assert stamp.trial == "a-fourth"


def test_without_an_export_there_is_no_winner(records: Records) -> None:
    assert exports.promote_to_winner(records) is None


def saving(pairs: int) -> Callable[[Path], int]:
    """Return a function that saves some weights, like a session after so many pairs."""

    def save(folder: Path) -> int:
        (folder / "deep").mkdir(parents=True)
        (folder / "deep" / "weights").write_bytes(b"0123456789")
        return pairs

    return save


def test_a_state_between_two_reports_names_the_one_before(tmp_path: Path) -> None:
    trial_state.save_state(RunFolder.at(tmp_path), "a", 64, saving(64))
    assert trial_state.save_state(RunFolder.at(tmp_path), "a", 64, saving(100)) == 100
    assert trial_state.last_whole_state(RunFolder.at(tmp_path), "a") == (100, "")
    assert trial_state.reported_pairs(RunFolder.at(tmp_path), "a", 100) == 64
    # Without new pairs there is no new state, nor if the session wrote nothing.
    assert trial_state.save_state(RunFolder.at(tmp_path), "a", 64, saving(100)) == 0
    assert trial_state.save_state(RunFolder.at(tmp_path), "a", 64, lambda _: 0) == 0
    assert trial_state.saved_pairs(RunFolder.at(tmp_path), "a") == [64, 100]


def test_the_last_whole_state_is_the_one_to_go_on_from(tmp_path: Path) -> None:
    trial_state.save_state(RunFolder.at(tmp_path), "a", 64, saving(64))
    trial_state.save_state(RunFolder.at(tmp_path), "a", 128, saving(128))
    assert trial_state.saved_pairs(RunFolder.at(tmp_path), "a") == [64, 128]
    (tmp_path / "state" / "a" / ".part" / "session").mkdir(parents=True)
    assert trial_state.saved_pairs(RunFolder.at(tmp_path), "a") == [64, 128]
    trial_state.save_state(RunFolder.at(tmp_path), "a", 192, saving(192))
    assert trial_state.saved_pairs(RunFolder.at(tmp_path), "a") == [128, 192]
    trial_state.drop_state(RunFolder.at(tmp_path), "a")
    assert trial_state.saved_pairs(RunFolder.at(tmp_path), "a") == []


def test_a_state_ahead_of_the_record_is_not_used(tmp_path: Path) -> None:
    """A power cut can leave this: the record's last report was not on the disk yet."""
    trial_state.save_state(RunFolder.at(tmp_path), "a", 64, saving(100))
    trial_state.save_state(RunFolder.at(tmp_path), "a", 128, saving(150))
    assert trial_state.last_state(RunFolder.at(tmp_path), "a", 128) == (150, "")
    assert trial_state.last_state(RunFolder.at(tmp_path), "a", 64) == (100, "")
    assert trial_state.last_whole_state(RunFolder.at(tmp_path), "a") == (100, "")


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "checksums"])
def test_a_damaged_state_is_noticed_and_the_one_before_is_used(tmp_path: Path, damage: str) -> None:
    for pairs in (64, 128):
        trial_state.save_state(RunFolder.at(tmp_path), "a", pairs, saving(pairs))
    assert trial_state.last_whole_state(RunFolder.at(tmp_path), "a") == (128, "")
    newest = tmp_path / "state" / "a" / "128"
    weights = newest / "session" / "deep" / "weights"
    match damage:
        case "flipped":
            weights.write_bytes(b"0123456780")
        case "cut":
            weights.write_bytes(b"01234")
        case "gone":
            weights.unlink()
        case "checksums":
            (newest / ".seal.json").write_text("{")
    pairs, message = trial_state.last_whole_state(RunFolder.at(tmp_path), "a")
    assert pairs == 64
    assert "its state at 128 pairs is damaged; it goes on from the one before" in message
    assert trial_state.saved_pairs(RunFolder.at(tmp_path), "a") == [64]
    (tmp_path / "state" / "a" / "64" / "session" / "deep" / "weights").unlink()
    assert trial_state.last_whole_state(RunFolder.at(tmp_path), "a")[0] == 0


def test_a_damaged_export_is_not_promoted_to_winner(
    records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    offer(records, "a", 0.7)
    offer(records, "b", 0.9)
    (records.folder.export("b", 64) / "weights").write_text("other than the checksums say")
    stamp = exports.promote_to_winner(records)
    assert stamp is not None
    assert stamp.trial == "a"
    assert "best/b/64 is damaged; the next best export is used" in capsys.readouterr().out


def test_an_export_past_the_state_is_dropped_with_what_is_trained_again(records: Records) -> None:
    offer(records, "a", 0.7, pairs=128)
    exports.drop_later_exports(records.folder, "a", 128)
    assert kept(records) == ["a"]
    exports.drop_later_exports(records.folder, "a", 64)
    assert kept(records) == []


def test_an_export_that_is_removed_meanwhile_is_skipped(records: Records) -> None:
    """The driver removes exports while trials look for the best export."""
    run, looked = records.folder, threading.Event()

    def come_and_go() -> None:
        while not looked.is_set():
            for trial in range(20):
                folder = run.export(f"x-{trial:03d}", 64)
                folder.mkdir(parents=True)
                (folder / "trial.json").write_text("{}")
            shutil.rmtree(run.best)

    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(come_and_go)
        try:
            for _ in range(300):
                assert exports.exports(records) == []  # none has its file of checksums
                mirror.sizes(run.path)
        finally:
            looked.set()
        going.result()


def test_a_partly_written_state_of_a_dead_process_does_no_harm(tmp_path: Path) -> None:
    trial_state.save_state(RunFolder.at(tmp_path), "a", 64, saving(64))
    left = tmp_path / "state" / "a" / "128" / "session" / "deep"
    left.mkdir(parents=True)
    (left / "weights").write_text("half")
    assert trial_state.last_whole_state(RunFolder.at(tmp_path), "a") == (64, "")
    trial_state.save_state(RunFolder.at(tmp_path), "a", 128, saving(128))
    assert trial_state.last_whole_state(RunFolder.at(tmp_path), "a") == (128, "")
    assert (left / "weights").read_text() == "0123456789"
