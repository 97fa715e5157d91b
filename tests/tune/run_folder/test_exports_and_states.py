import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dpo_train.storage import mirror
from dpo_train.storage.files import write_checksums
from tune.config.objective import Objective
from tune.run_folder import exports, trial_state

ACCURACY = Objective(metric="eval/accuracy", mode="max")


def report(accuracy: float, drift: float = 1.0, pairs: int = 64) -> dict[str, float]:
    return {"eval/accuracy": accuracy, "eval/drift": drift, "pairs_seen": pairs}


def offer(run: Path, trial: str, **values: float) -> bool:
    exported = []

    def export(folder: Path) -> None:
        folder.mkdir()
        exported.append(folder)

    shown = report(**values)  # type: ignore[arg-type]
    exports.offer_export(run, trial, {}, shown, ACCURACY, 2, export)
    exports.prune_exports(run, ACCURACY, 2)
    return bool(exported)


def kept(run: Path) -> list[str]:
    return [stamp["trial"] for _, stamp in exports.exports(run, ACCURACY)]


def test_only_the_k_best_are_exported_and_kept(tmp_path: Path) -> None:
    assert offer(tmp_path, "a", accuracy=0.7)
    assert offer(tmp_path, "b", accuracy=0.6)
    assert not offer(tmp_path, "c", accuracy=0.5)
    assert offer(tmp_path, "d", accuracy=0.8)
    assert kept(tmp_path) == ["d", "a"]
    assert sorted(path.name for path in (tmp_path / "best").iterdir()) == ["a", "d"]


def test_a_trial_keeps_its_best_report_alone(tmp_path: Path) -> None:
    assert offer(tmp_path, "a", accuracy=0.7)
    assert not offer(tmp_path, "a", accuracy=0.6, pairs=128)
    assert offer(tmp_path, "a", accuracy=0.9, pairs=192)
    assert kept(tmp_path) == ["a"]
    assert [path.name for path in (tmp_path / "best" / "a").iterdir()] == ["192"]


def test_what_a_trial_adds_while_the_driver_prunes_survives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for trial, accuracy in (("a", 0.9), ("b", 0.8), ("c", 0.7)):
        (tmp_path / "best" / trial / "64").mkdir(parents=True)
        stamp = {"trial": trial, "config": {}, "report": report(accuracy)}
        (tmp_path / "best" / trial / "64" / exports.STAMP).write_text(json.dumps(stamp))
        write_checksums(tmp_path / "best" / trial / "64")
    remove = shutil.rmtree

    def add_then_remove(folder: Path, **options: bool) -> None:
        monkeypatch.setattr(shutil, "rmtree", remove)
        exports.offer_export(
            tmp_path, "c", {}, report(0.95, pairs=128), ACCURACY, 2, lambda part: part.mkdir()
        )
        remove(folder, **options)

    monkeypatch.setattr(shutil, "rmtree", add_then_remove)
    exports.prune_exports(tmp_path, ACCURACY, 2)
    assert kept(tmp_path)[0] == "c"


def test_a_tie_goes_to_the_lower_drift(tmp_path: Path) -> None:
    offer(tmp_path, "a", accuracy=0.7, drift=2.0)
    offer(tmp_path, "b", accuracy=0.7, drift=1.0)
    assert kept(tmp_path) == ["b", "a"]
    stamp = exports.promote_to_winner(tmp_path, ACCURACY)
    assert stamp is not None
    assert stamp["trial"] == "b"
    assert (tmp_path / "winner" / exports.STAMP).exists()


def test_a_finalists_exports_outlast_better_ones_of_others(tmp_path: Path) -> None:
    def offer(trial: str, accuracy: float, confirms: str | None = None) -> None:
        exports.offer_export(
            tmp_path, trial, {}, report(accuracy), ACCURACY, 1, Path.mkdir, confirms
        )
        exports.prune_exports(tmp_path, ACCURACY, 1, ["a"])

    offer("a", 0.7)
    offer("lucky", 0.9)
    offer("a-again", 0.6, "a")
    assert kept(tmp_path) == ["lucky", "a"]
    offer("a-third", 0.8, "a")
    assert exports.export_of(tmp_path, ACCURACY, "a")  # with which the winner is compared
    shutil.rmtree(tmp_path / "best" / "a")
    shutil.rmtree(tmp_path / "best" / "a-third")
    offer("a-fourth", 0.5, "a")
    stamp = exports.promote_to_winner(tmp_path, ACCURACY, "a")
    assert stamp is not None
    assert stamp["trial"] == "a-fourth"


def test_nothing_exported_crowns_nothing(tmp_path: Path) -> None:
    assert exports.promote_to_winner(tmp_path, ACCURACY) is None


def saving(pairs: int) -> Callable[[Path], int]:
    """A session that saves some weights after so many pairs."""

    def save(folder: Path) -> int:
        (folder / "deep").mkdir(parents=True)
        (folder / "deep" / "weights").write_bytes(b"0123456789")
        return pairs

    return save


def test_a_state_between_two_reports_names_the_one_before(tmp_path: Path) -> None:
    trial_state.save_state(tmp_path, "a", 64, saving(64))
    assert trial_state.save_state(tmp_path, "a", 64, saving(100)) == 100
    assert trial_state.last_whole_state(tmp_path, "a") == (100, "")
    assert trial_state.reported_pairs(tmp_path, "a", 100) == 64
    # Nothing new is no state, and neither is what a session did not write.
    assert trial_state.save_state(tmp_path, "a", 64, saving(100)) == 0
    assert trial_state.save_state(tmp_path, "a", 64, lambda _: 0) == 0
    assert trial_state.saved_pairs(tmp_path, "a") == [64, 100]


def test_the_last_whole_state_is_the_one_to_go_on_from(tmp_path: Path) -> None:
    trial_state.save_state(tmp_path, "a", 64, saving(64))
    trial_state.save_state(tmp_path, "a", 128, saving(128))
    assert trial_state.saved_pairs(tmp_path, "a") == [64, 128]
    (tmp_path / "state" / "a" / ".part" / "session").mkdir(parents=True)
    assert trial_state.saved_pairs(tmp_path, "a") == [64, 128]
    trial_state.save_state(tmp_path, "a", 192, saving(192))
    assert trial_state.saved_pairs(tmp_path, "a") == [128, 192]
    trial_state.drop_state(tmp_path, "a")
    assert trial_state.saved_pairs(tmp_path, "a") == []


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "seal"])
def test_a_damaged_state_is_noticed_and_the_one_before_is_used(tmp_path: Path, damage: str) -> None:
    for pairs in (64, 128):
        trial_state.save_state(tmp_path, "a", pairs, saving(pairs))
    assert trial_state.last_whole_state(tmp_path, "a") == (128, "")
    newest = tmp_path / "state" / "a" / "128"
    weights = newest / "session" / "deep" / "weights"
    match damage:
        case "flipped":
            weights.write_bytes(b"0123456780")
        case "cut":
            weights.write_bytes(b"01234")
        case "gone":
            weights.unlink()
        case "seal":
            (newest / ".seal.json").write_text("{")
    pairs, told = trial_state.last_whole_state(tmp_path, "a")
    assert pairs == 64
    assert "its state at 128 pairs is damaged; it goes on from the one before" in told
    assert trial_state.saved_pairs(tmp_path, "a") == [64]
    (tmp_path / "state" / "a" / "64" / "session" / "deep" / "weights").unlink()
    assert trial_state.last_whole_state(tmp_path, "a")[0] == 0


def test_a_damaged_export_is_not_crowned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    offer(tmp_path, "a", accuracy=0.7)
    offer(tmp_path, "b", accuracy=0.9)
    (tmp_path / "best" / "b" / "64" / "weights").write_text("more than was sealed")
    stamp = exports.promote_to_winner(tmp_path, ACCURACY)
    assert stamp is not None
    assert stamp["trial"] == "a"
    assert "best/b/64 is damaged; the next best export is taken" in capsys.readouterr().out


def test_an_export_past_the_state_is_dropped_with_what_is_trained_again(tmp_path: Path) -> None:
    offer(tmp_path, "a", accuracy=0.7, pairs=128)
    exports.drop_later_exports(tmp_path, "a", 128)
    assert kept(tmp_path) == ["a"]
    exports.drop_later_exports(tmp_path, "a", 64)
    assert kept(tmp_path) == []


def test_what_is_removed_while_one_looks_is_passed_over(tmp_path: Path) -> None:
    """The driver removes exports while trials look for the best of all."""
    looked = threading.Event()

    def come_and_go() -> None:
        while not looked.is_set():
            for trial in range(20):
                folder = tmp_path / "best" / f"x-{trial:03d}" / "64"
                folder.mkdir(parents=True)
                (folder / "trial.json").write_text("{}")
            shutil.rmtree(tmp_path / "best")

    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(come_and_go)
        try:
            for _ in range(300):
                assert exports.exports(tmp_path, ACCURACY) == []  # none has its seal
                mirror.sizes(tmp_path)
        finally:
            looked.set()
        going.result()


def test_what_a_death_left_of_a_state_is_in_nobodys_way(tmp_path: Path) -> None:
    trial_state.save_state(tmp_path, "a", 64, saving(64))
    left = tmp_path / "state" / "a" / "128" / "session" / "deep"
    left.mkdir(parents=True)
    (left / "weights").write_text("half")
    assert trial_state.last_whole_state(tmp_path, "a") == (64, "")
    trial_state.save_state(tmp_path, "a", 128, saving(128))
    assert trial_state.last_whole_state(tmp_path, "a") == (128, "")
    assert (left / "weights").read_text() == "0123456789"
