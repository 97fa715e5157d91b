"""Trackers get each change of the records in order, and none disturbs another."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.event_files import curves
from tests.helpers.recorded_search import Search, wait_until
from tests.helpers.wandb_runs import reports
from tests.helpers.wandb_server import WandbServer
from tune.run_folder.paths import RunFolder
from tune.run_folder.results import Results
from tune.run_folder.trial_record import TrialRecord
from tune.tracking.child_process import CLOSE_SECONDS, TrackingProcess
from tune.tracking.follower import Follower
from tune.tracking.trackers import how_to_send


class Notebook:
    """A tracker that writes down its calls."""

    name = "notebook"

    def __init__(self, failing: str = "") -> None:
        self.notes: list[str] = []
        self.failing = failing

    def begin_search(self) -> None:
        self._note("begin search")

    def report(self, record: TrialRecord) -> None:
        self._note(f"report {record.id[-3:]} {record.pairs_seen}")

    def end_trial(self, record: TrialRecord) -> None:
        self._note(f"end trial {record.id[-3:]} {record.state}")

    def end_search(self, results: Results | None) -> None:
        self._note(f"end search {'with' if results else 'without'} results")

    def close(self) -> None:
        self._note("close")

    def _note(self, note: str) -> None:
        self.notes.append(note)
        if self.failing and note.startswith(self.failing):
            raise ValueError("no more paper")


def follow(folder: Path, tracker: Notebook, *steps: Callable[[], object]) -> None:
    """Follow a run folder through steps. Each step is seen before the next one."""

    class Closing(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            if not waiting:
                return True
            waiting.pop(0)()
            return False

    waiting = list(steps)
    Follower(RunFolder.at(folder), tracker).follow(Closing())


def test_a_tracker_gets_each_change_once(tmp_path: Path) -> None:
    search, tracker = Search(tmp_path), Notebook()
    follow(
        search.folder,
        tracker,
        lambda: None,
        lambda: search.report(2),
        lambda: None,
        lambda: search.records.end(search.ids[0], "stopped"),
        search.write_results,
        lambda: None,
    )
    assert tracker.notes == [
        "begin search",
        "report 000 0",
        "report 000 128",
        "end trial 000 stopped",
        "end search with results",
        "close",
    ]


def test_an_interrupted_search_has_open_trials_and_no_results(tmp_path: Path) -> None:
    search, tracker = Search(tmp_path), Notebook()
    search.end()  # an earlier driver session wrote results.json
    search.begin(1e-4)
    search.records.add(search.records.next_id(), {})  # no worker has taken this trial
    follow(search.folder, tracker, lambda: search.records.end(search.ids[1], "running"))
    assert tracker.notes == [
        "begin search",
        "end trial 000 finished",
        "report 001 0",
        "end trial 001 running",
        "end search without results",
        "close",
    ]


def test_trials_that_run_come_before_new_ones(tmp_path: Path) -> None:
    search, tracker = Search(tmp_path), Notebook()
    first = search.ids[0]
    search.begin(1e-4)
    search.records.end(first, "finished")

    def both() -> None:
        search.records.add("a-before-all", {})
        search.records.begin("a-before-all")
        search.records.end(search.ids[1], "finished")

    follow(search.folder, tracker, lambda: None, both)
    assert tracker.notes[3:5] == ["end trial 001 finished", "report all 0"]


@pytest.mark.parametrize("failing", ["begin search", "report", "end trial", "end search"])
def test_a_tracker_that_failed_is_closed(tmp_path: Path, failing: str) -> None:
    search, tracker = Search(tmp_path), Notebook(failing)
    with pytest.raises(ValueError, match="no more paper"):
        follow(search.folder, tracker, lambda: search.report(1), search.end)
    assert tracker.notes[-2].startswith(failing)
    assert tracker.notes[-1] == "close"


def test_both_trackers_follow_a_search(tmp_path: Path, server: WandbServer) -> None:
    search = Search(tmp_path, tensorboard=True)
    tracking = TrackingProcess(search.run, search.config)
    search.report(2)
    search.end()
    search.close(tracking)
    (trial_id,) = search.ids
    curve = search.records.trials[trial_id].curve
    assert how_to_send(search.run) == ""
    assert reports(server.runs[trial_id].rows) == curve
    written = curves(search.folder / "tensorboard" / trial_id)["eval/accuracy"]
    assert written == [(report["pairs_seen"], report["eval/accuracy"]) for report in curve]


def test_a_tracker_that_cannot_write_does_not_stop_the_other(
    tmp_path: Path, server: WandbServer, capfd: pytest.CaptureFixture[str]
) -> None:
    search = Search(tmp_path, tensorboard=True)
    (search.folder / "tensorboard").write_text("a file of the user's")
    tracking = TrackingProcess(search.run, search.config)
    search.report(2)
    search.end()
    search.close(tracking)
    warned = capfd.readouterr().err
    assert warned.startswith("warning: TensorBoard: [Errno 17] File exists")
    assert warned.count("\n") == 1
    assert server.runs[search.ids[0]].state == "finished"
    assert json.loads((search.folder / "wandb.json").read_text())["told"]


def test_a_tracker_that_waits_for_its_server_does_not_delay_the_other(
    tmp_path: Path, server: WandbServer
) -> None:
    server.ill = "hang"
    search = Search(tmp_path, tensorboard=True)
    tracking = TrackingProcess(search.run, search.config)
    search.report(1)
    folder = search.folder / "tensorboard" / search.ids[0]
    began = time.monotonic()
    wait_until(lambda: folder.exists() and "eval/accuracy" in curves(folder))
    assert time.monotonic() - began < 5
    search.end()
    assert search.close(tracking) < CLOSE_SECONDS + 2  # the kill takes time, too
    assert "best/eval/accuracy" in curves(folder)
    assert how_to_send(search.run).startswith("W&B: ")
