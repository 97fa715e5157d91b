"""Runs the child process that reads the trial records and passes them to the trackers.

`python -m tune.tracking.follower RUN` runs until its stdin closes, then passes the rest and ends.
It may be killed at any time. It knows the protocol of a tracker, but no tracker.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator

from dpo_train.errors import one_line
from tune.config.load import load_search
from tune.config.schema import SearchConfig
from tune.run_folder.paths import RunFolder
from tune.run_folder.results import Results, load_results
from tune.run_folder.trial_record import ENDED, TrialRecord
from tune.tracking import trackers
from tune.tracking.child_process import LOG, kill_children
from tune.tracking.tracker import Say, Tracker

_POLL_SECONDS = 1.0
_CLOSE_SECONDS = 8.5
"""How long the child may still pass on records after stdin has closed. The driver kills the child
after child_process.CLOSE_SECONDS."""

OpenTrackers = Callable[[RunFolder, SearchConfig, Say], list[Tracker]]


class Follower:
    """Reads the trial records of a run folder and passes their changes to one tracker."""

    def __init__(self, folder: RunFolder, tracker: Tracker) -> None:
        self._folder = folder
        self._tracker = tracker
        self._seen: dict[str, int] = {}
        """The modification time of each record when it was last read, in nanoseconds."""
        self._running: dict[str, TrialRecord] = {}
        self._ended: set[str] = set()

    def follow(self, closing: threading.Event) -> None:
        """Shows a driver session from its beginning until it closes."""
        try:
            self._tracker.begin_search()
            while not closing.wait(_POLL_SECONDS):
                self.poll()
            self.poll()
            for record in self._running.values():
                self._tracker.end_trial(record)
            self._tracker.end_search(self._results())
        finally:
            self._tracker.close()

    def poll(self) -> None:
        """Passes on what has changed in the records since the last poll.

        To show a new trial may take longer than _CLOSE_SECONDS, to end one is quick. So we start
        with the trials that are already shown.
        """
        paths = sorted(self._folder.trials.glob("*.json"))
        for path in sorted(paths, key=lambda path: path.stem not in self._running):
            if path.stem in self._ended:
                continue
            changed = path.stat().st_mtime_ns
            if self._seen.get(path.stem) != changed:
                self._seen[path.stem] = changed
                self._show(TrialRecord.model_validate_json(path.read_text()))

    def _show(self, record: TrialRecord) -> None:
        if record.state in ENDED:
            self._running.pop(record.id, None)
            self._ended.add(record.id)
            self._tracker.end_trial(record)
        elif record.state == "running" or record.id in self._running:
            self._running[record.id] = record
            self._tracker.report(record)

    def _results(self) -> Results | None:
        if not self._folder.results_json.exists():
            return None
        results = load_results(self._folder)
        if len(results.runs) < len(list(self._folder.trials.glob("*.json"))):
            return None  # this driver session was interrupted; the results are from an earlier one
        return results


def main(folder: RunFolder, open_trackers: OpenTrackers, is_only_child: bool = True) -> None:
    """Follows a run folder until stdin closes. What it prints is shown to the user."""
    say = _take_stdout()
    closing = threading.Event()
    threading.Thread(target=_watch_stdin, args=[closing, folder], daemon=True).start()
    with _only_child(folder) if is_only_child else contextlib.nullcontext():
        try:
            found = open_trackers(folder, load_search(folder.search_yaml), say)
        except Exception as error:
            traceback.print_exc()
            say(f"tracking: {one_line(error)}; no tracker runs, see {folder.path / LOG}")
            found = []
        # Each has its own thread, so that one that fails or waits does not stop the others.
        following = [
            threading.Thread(target=_follow, args=[folder, tracker, say, closing])
            for tracker in found
        ]
        for thread in following:
            thread.start()
        for thread in following:
            thread.join()
    _leave()


def _follow(folder: RunFolder, tracker: Tracker, say: Say, closing: threading.Event) -> None:
    try:
        Follower(folder, tracker).follow(closing)
    except Exception as error:
        traceback.print_exc()
        say(f"{tracker.name}: {one_line(error)}; it gets no more reports, see {folder.path / LOG}")


def _take_stdout() -> Say:
    """Reserves stdout for our messages, and sends the output of trackers' libraries to stderr."""
    stream = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(line: str) -> None:
        with contextlib.suppress(OSError):  # the driver is gone
            stream.write(f"{line}\n")
            stream.flush()

    return say


def _watch_stdin(closing: threading.Event, folder: RunFolder) -> None:
    """Waits until stdin closes, because the driver ended or died. Then gives the trackers
    _CLOSE_SECONDS, and ends this process."""
    while os.read(0, 1024):
        pass
    closing.set()
    time.sleep(_CLOSE_SECONDS)
    trackers.mark_unsent(folder)
    _leave()


@contextlib.contextmanager
def _only_child(folder: RunFolder) -> Iterator[None]:
    """Waits until the child of an earlier, killed driver has ended, which takes seconds."""
    with (folder.path / LOG).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _leave() -> None:
    """Ends this process and those that the trackers started, even if they are waiting."""
    kill_children(os.getpid())
    os._exit(0)


if __name__ == "__main__":
    os.nice(10)  # the trials come first
    main(RunFolder.at(sys.argv[1]), trackers.wanted)
