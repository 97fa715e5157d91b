"""Ensures that a run folder has one driver: by a lock on this machine, by a heartbeat at its URL.

The driver holds both while it copies the run's files from the URL, since it continues from these.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO

from dpo_train.command_line import dpo_tune
from dpo_train.errors import InputError
from dpo_train.storage import mirror
from tune.run_folder.live import read_live
from tune.run_folder.paths import RunFolder

_MOMENT_SECONDS = 0.1

BEAT_SECONDS = 10.0
"""The interval at which a driver writes its heartbeat and uploads files that could wait."""
DEAD_SECONDS = 35.0
"""A driver on another machine whose heartbeat does not change for this long has died."""


@dataclass(frozen=True)
class _Heartbeat:
    """The content of the file `RunFolder.heartbeat`, which identifies a driver."""

    id: str
    where: tuple[str, ...]
    """The machine and container of the process `pid`; see `_where`."""
    pid: int
    beat: int = 0
    """Counts up, so that others see that the driver is alive."""

    @classmethod
    def mine(cls) -> _Heartbeat:
        """Returns the first heartbeat of this process."""
        return cls(secrets.token_hex(8), _where(), os.getpid())

    @classmethod
    def read(cls, file: Path) -> _Heartbeat | None:
        """Returns the heartbeat in a file; None if there is no file."""
        try:
            content = json.loads(mirror.read_text(file))
        except FileNotFoundError:
            return None
        return cls(content["id"], tuple(content["where"]), content["pid"], content["beat"])

    def put(self, file: Path) -> None:
        """Writes the heartbeat to a file at the run's URL."""
        mirror.put(file, json.dumps(asdict(self)))

    @property
    def is_dead_here(self) -> bool:
        """Whether the driver ran on this machine and has ended."""
        return self.where == _where() and not Path(f"/proc/{self.pid}").exists()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.where[0]}"


@contextlib.contextmanager
def only_driver(folder: RunFolder) -> Iterator[None]:
    """Holds the run folder for this process. The lock ends with the process.

    Raises InputError if another driver holds it, and StoreError.
    """
    if folder.url is not None:
        folder.path.mkdir(parents=True, exist_ok=True)
    with folder.driver_lock.open("w") as file:
        try:
            _lock(file)
        except BlockingIOError:
            raise InputError(_held(folder, "another process")) from None
        if folder.url is None:
            yield
            return
        with folder.refresh_lock.open("w") as refreshing:
            fcntl.flock(refreshing, fcntl.LOCK_EX)
            with _beating(folder):
                _download(folder)
                yield


def _lock(file: IO[str]) -> None:
    """Locks the file. Raises BlockingIOError if a driver holds it.

    Another command may hold it for a moment, in `is_driven`, so we try twice.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        time.sleep(_MOMENT_SECONDS)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_driven(folder: RunFolder) -> bool:
    """Returns whether a driver runs, as far as this is known without waiting for a heartbeat."""
    if folder.url is not None:
        heartbeat = _Heartbeat.read(folder.heartbeat)
        return heartbeat is not None and not heartbeat.is_dead_here and bool(read_live(folder))
    try:
        with folder.driver_lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def refresh(folder: RunFolder) -> None:
    """Downloads a run's documents from its URL.

    If the driver runs on this machine, its files here are the newest, so nothing is downloaded.
    Raises StoreError.
    """
    if folder.url is None:
        return
    folder.path.mkdir(parents=True, exist_ok=True)
    with folder.refresh_lock.open("w") as refreshing:
        try:
            fcntl.flock(refreshing, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        _download(folder)


def _download(folder: RunFolder) -> None:
    mirror.bring_files(folder.path)
    mirror.bring_files(folder.trials)
    if not folder.exists:
        # The run was removed at its URL, so its remaining folders here are removed too.
        for path in folder.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _beating(folder: RunFolder) -> Iterator[None]:
    file = folder.heartbeat
    mine = _Heartbeat.mine()
    _wait_for_another(folder, file)
    mine.put(file)
    is_over = threading.Event()
    beating = threading.Thread(target=_beat, args=[folder, file, mine, is_over], daemon=True)
    beating.start()
    try:
        yield
    finally:
        is_over.set()
        beating.join()
        with contextlib.suppress(OSError):
            theirs = _Heartbeat.read(file)
            if theirs is not None and theirs.id == mine.id:
                if mirror.exists(folder.run_json):  # the run was not removed
                    mirror.flush()
                mirror.remove(file)


def _beat(folder: RunFolder, file: Path, mine: _Heartbeat, is_over: threading.Event) -> None:
    beat = 0
    while not is_over.wait(BEAT_SECONDS):
        beat += 1
        with contextlib.suppress(OSError):  # if the error lasts, writing records fails too
            theirs = _Heartbeat.read(file)
            if theirs is not None and theirs.id != mine.id:
                # Another driver took over, and our files must not mix with its, so we stop.
                mirror.close(folder.path, f"{theirs} drives {folder} now")
                return
            replace(mine, beat=beat).put(file)
            mirror.flush()


def _wait_for_another(folder: RunFolder, file: Path) -> None:
    """Waits until it is certain that no other driver is alive. Raises InputError if one is.

    The clocks of two machines may differ, so we watch whether the heartbeat changes.
    """
    if (first := _Heartbeat.read(file)) is None or first.is_dead_here:
        return
    print(
        f"{folder} was last driven by {first}; checking for up to {DEAD_SECONDS:.0f} s whether it "
        "still runs",
        flush=True,
    )
    deadline = time.monotonic() + DEAD_SECONDS
    while time.monotonic() < deadline:
        time.sleep(min(1.0, BEAT_SECONDS))
        if (now := _Heartbeat.read(file)) is None:
            return
        if now != first:
            raise InputError(_held(folder, str(now)))


def _where() -> tuple[str, ...]:
    """Returns where a process id is unique: the host, its last boot, and the container."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname(), boot, os.readlink("/proc/self/ns/pid")


def _held(folder: RunFolder, who: str) -> str:
    watch = dpo_tune("show", folder.argument)
    return (
        f"{folder}: {who} runs this search now; watch it with `{watch}`, or start another search "
        "with `--name NEW`"
    )
