"""Files appear whole under their names, whoever writes and whatever fails."""

import errno
import multiprocessing
import os
from pathlib import Path

import pytest

from dpo_train import data, reference
from dpo_train.config import TrainConfig
from dpo_train.storage.files import write_atomically, write_durably, write_here


@pytest.mark.parametrize("write", [write_atomically, write_durably, write_here])
def test_a_failed_write_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: object
) -> None:
    path = tmp_path / "report.html"
    path.write_text("before")
    write_bytes = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        write_bytes(path, content[:3])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write(path, "after")  # type: ignore[operator]
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]
    assert path.read_text() == "before"


def test_many_may_write_the_same_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    start = multiprocessing.get_context("fork")
    go = start.Barrier(4)

    def write(letter: str) -> None:
        go.wait()
        for _ in range(200):
            write_here(path, letter * 5000)
            assert len(set(path.read_text())) == 1

    writers = [start.Process(target=write, args=[letter]) for letter in "abcd"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert os.listdir(tmp_path) == ["run.json"]


def test_four_searches_may_plan_the_same_data_at_once(
    tmp_path: Path, small_config: TrainConfig
) -> None:
    pairs = data.load_pairs(small_config.data)
    start = multiprocessing.get_context("fork")
    go = start.Barrier(4)

    def plan() -> None:
        go.wait()
        reference.plan(small_config, pairs, tmp_path, "cpu")

    drivers = [start.Process(target=plan) for _ in range(4)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join(60)
    assert [driver.exitcode for driver in drivers] == [0] * 4
    (folder,) = tmp_path.iterdir()
    assert {each.name for each in folder.iterdir()} >= {"plan.json", "rows.jsonl"}
    assert not list(folder.glob(".*"))
