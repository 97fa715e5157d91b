"""A run folder has one driver: by a lock on this machine, by a heartbeat on the folder's URL.

Under it, what is on the URL is brought here, for the driver goes on from that alone.
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

from dpo_train.command_line import dpo_tune
from dpo_train.errors import InputError
from dpo_train.storage import mirror
from tune.run_folder.live import read_live
from tune.run_folder.paths import RunFolder

BEAT_SECONDS = 10.0
"""A driver says so often that it lives, and brings what could wait."""
DEAD_SECONDS = 35.0
"""A driver of another machine that is silent for so long has died."""


@dataclass(frozen=True)
class _Heartbeat:
    """What a driver says of itself, in the file `RunFolder.heartbeat`."""

    id: str
    where: tuple[str, ...]
    """Of the process id `pid`: see `_where`."""
    pid: int
    beat: int = 0

    @classmethod
    def mine(cls) -> _Heartbeat:
        return cls(secrets.token_hex(8), _where(), os.getpid())

    @classmethod
    def read(cls, file: Path) -> _Heartbeat | None:
        """None if there is none."""
        try:
            content = json.loads(mirror.read_text(file))
        except FileNotFoundError:
            return None
        return cls(content["id"], tuple(content["where"]), content["pid"], content["beat"])

    def put(self, file: Path) -> None:
        mirror.put(file, json.dumps(asdict(self)))

    @property
    def is_dead_here(self) -> bool:
        """Whether it is known of a process of this machine that it has ended."""
        return self.where == _where() and not Path(f"/proc/{self.pid}").exists()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.where[0]}"


@contextlib.contextmanager
def only_driver(folder: RunFolder) -> Iterator[None]:
    """Holds the folder for this process; the lock dies with it. Raises InputError if held, and
    StoreError."""
    if folder.url is not None:
        folder.path.mkdir(parents=True, exist_ok=True)
    with folder.driver_lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(_held(folder, "another process")) from None
        if folder.url is None:
            yield
            return
        with folder.refresh_lock.open("w") as bringing:
            fcntl.flock(bringing, fcntl.LOCK_EX)
            with _beating(folder):
                _bring(folder)
                yield


def is_driven(folder: RunFolder) -> bool:
    """Whether a driver is at work, as far as it is known without waiting for a sign of it."""
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
    """Brings a run's documents from its URL, unless its driver is at work here, who has the newest.

    Raises StoreError.
    """
    if folder.url is None:
        return
    folder.path.mkdir(parents=True, exist_ok=True)
    with folder.refresh_lock.open("w") as bringing:
        try:
            fcntl.flock(bringing, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        _bring(folder)


def _bring(folder: RunFolder) -> None:
    mirror.bring_files(folder.path)
    mirror.bring_files(folder.trials)
    if not folder.exists:
        # What lies here is of a run that is no more.
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
                if mirror.exists(folder.run_json):  # not removed just now
                    mirror.flush()
                mirror.remove(file)


def _beat(folder: RunFolder, file: Path, mine: _Heartbeat, is_over: threading.Event) -> None:
    beat = 0
    while not is_over.wait(BEAT_SECONDS):
        beat += 1
        with contextlib.suppress(OSError):  # the records tell of it, if it lasts
            theirs = _Heartbeat.read(file)
            if theirs is not None and theirs.id != mine.id:
                # Nothing of this process may be mixed into what the other writes.
                mirror.close(folder.path, f"{theirs} drives {folder} now")
                return
            replace(mine, beat=beat).put(file)
            mirror.flush()


def _wait_for_another(folder: RunFolder, file: Path) -> None:
    """Until it is known that no other driver lives. Raises InputError if one does.

    By whether its heartbeat changes: clocks of two machines are not compared.
    """
    if (first := _Heartbeat.read(file)) is None or first.is_dead_here:
        return
    print(
        f"{folder} was driven by {first}; looking for at most "
        f"{DEAD_SECONDS:.0f} s whether that lives",
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
    """Where a process id means this process: the host, since its start, and its container."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname(), boot, os.readlink("/proc/self/ns/pid")


def _held(folder: RunFolder, who: str) -> str:
    watch = dpo_tune("show", folder.argument)
    return f"{folder}: {who} runs this search now; watch it with `{watch}`, or give `--name NEW`"
