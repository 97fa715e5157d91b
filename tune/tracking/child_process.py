"""Starts and ends the child process of the trackers, for the driver.

The child, `tune/tracking/follower.py`, reads the trial records and passes them to the trackers.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import psutil

from tune.config.schema import SearchConfig
from tune.run_folder.paths import RunFolder
from tune.tracking import trackers

CLOSE_SECONDS = 10.0
"""How long a search waits for its trackers at its end, at most. It never waits before its end."""
LOG = "tracking/child.log"
"""The log in the run folder: output of the trackers' libraries, and full errors. The child locks
it. Files beside `run.json` that a run's URL lacks are removed, so the log has its own folder."""


class TrackingProcess:
    """Shows a search in its trackers while it runs, if its configuration has any."""

    def __init__(self, folder: RunFolder, config: SearchConfig) -> None:
        self._folder = folder
        self._process = _start(folder) if trackers.wanted(folder, config, _warn) else None
        if self._process is not None:
            # The child may warn long before its end, for example of an unreachable server.
            self._listening = threading.Thread(target=self._pass_on, daemon=True)
            self._listening.start()

    def close(self) -> None:
        """Waits at most CLOSE_SECONDS for the child to end, then kills it."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            kill_children(self._process.pid)
            self._process.kill()
            self._process.wait()
        self._listening.join()
        trackers.mark_unsent(self._folder)

    def _pass_on(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                _warn(line.rstrip())


def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr, flush=True)


def kill_children(pid: int) -> None:
    """Kills the direct children of a process, like a tracker's client in its own session."""
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def _start(folder: RunFolder) -> subprocess.Popen[str]:
    (folder.path / LOG).parent.mkdir(exist_ok=True)
    environment = trackers.environment()
    # A notebook may have imported this package from a path that only it knows, so we pass the path.
    paths = [str(Path(__file__).parents[2]), *filter(None, [environment.get("PYTHONPATH")])]
    with (folder.path / LOG).open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tune.tracking.follower", str(folder.path.absolute())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment | {"PYTHONPATH": os.pathsep.join(paths)},
            # Ctrl-C must reach the search only.
            start_new_session=True,
        )
