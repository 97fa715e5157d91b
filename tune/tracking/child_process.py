"""The driver's side of Weights & Biases: one child process, started, ended in time, left behind.

Knows no client: the child, `tune/tracking/follower.py`, reads the trial records and tells W&B.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import psutil

from tune.config.outputs import WandbConfig

CLOSE_SECONDS = 10.0
"""The most that a search waits for W&B at its end; it never waits before."""

# What the user's environment may say: where the server is, who one is. All else (a sweep, a run's
# id, a mode that is left over from another command) is the search's own to say.
_ACCESS = (
    "WANDB_API_KEY",
    "WANDB_APP_URL",
    "WANDB_BASE_URL",
    "WANDB_CACHE_DIR",
    "WANDB_CONFIG_DIR",
    "WANDB_DATA_DIR",
    "WANDB_ENTITY",
    "WANDB_HTTPS_PROXY",
    "WANDB_HTTP_PROXY",
    "WANDB_IDENTITY_TOKEN_FILE",
    "WANDB_INSECURE_DISABLE_SSL",
)


class Tracker:
    """Tells W&B of a search while it runs, if its configuration wants that."""

    def __init__(self, folder: Path, config: WandbConfig) -> None:
        self._folder = folder
        self._process = None if config.mode == "disabled" else _start(folder)
        if self._process is not None:
            # The child has something to say long before its end: that it can't reach the server.
            self._listening = threading.Thread(target=self._pass_on, daemon=True)
            self._listening.start()

    def close(self) -> None:
        """Lets the child end, for at most CLOSE_SECONDS, then ends it."""
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
        mark_unsent(self._folder)

    def _pass_on(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        with self._process.stdout as said:
            for line in said:
                # On a terminal a live line may stand there.
                start = "\r\033[K" if sys.stderr.isatty() else ""
                print(f"{start}warning: W&B: {line.rstrip()}", file=sys.stderr, flush=True)


def how_to_send(folder: Path) -> str:
    """Says how many runs wait on disk and the command that sends them; empty if none does."""
    waiting = [path for path in _folders(folder) if not list(path.glob("*.wandb.synced"))]
    if not waiting:
        return ""
    runs = "1 run waits" if len(waiting) == 1 else f"{len(waiting)} runs wait"
    return f"W&B: {runs} on disk; to send: wandb sync --yes {shlex.quote(str(folder / 'wandb'))}"


def folders_of(folder: Path, run_id: str) -> list[Path]:
    """The folders that the client wrote for a run, in this driver session or another."""
    name = re.compile(rf"(offline-)?run-\d+_\d+-{re.escape(run_id)}(-\d+)?")
    return [path for path in _folders(folder) if name.fullmatch(path.name)]


def mark_unsent(folder: Path) -> None:
    """Names what an online run left on disk as the client names offline runs.

    What was sent has been removed. `wandb sync` passes over folders of online runs.
    """
    for path in _folders(folder):
        if path.name.startswith("run-"):
            with contextlib.suppress(OSError):
                path.rename(path.with_name(f"offline-{path.name}"))


def _folders(folder: Path) -> list[Path]:
    there = (folder / "wandb").glob("*run-*/")
    return sorted(path for path in there if re.match(r"(offline-)?run-\d", path.name))


def kill_children(pid: int) -> None:
    """Of the process itself alone, like the client's, which has a session of its own."""
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def _start(folder: Path) -> subprocess.Popen[str]:
    (folder / "wandb").mkdir(exist_ok=True)
    with (folder / "wandb" / "tracking.log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tune.tracking.follower", str(folder.absolute())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment(),
            # Ctrl-C is the search's.
            start_new_session=True,
        )


def environment() -> dict[str, str]:
    """This process's, without what the client reads beyond who and where; for the child."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _ACCESS or not name.startswith("WANDB_")
    }
    # A notebook may have found this package by a path of its own.
    paths = [str(Path(__file__).parents[2]), *filter(None, [kept.get("PYTHONPATH")])]
    return kept | {
        "PYTHONPATH": os.pathsep.join(paths),
        "WANDB_SILENT": "true",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_HTTP_TIMEOUT": "5",
    }
