"""What the caller of a search gets when it did not come to its end: why, and how it goes on."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
from collections.abc import Iterator

from dpo_train.errors import DiskFull, StoreError, one_line
from tune.errors import Interrupted
from tune.run_folder.paths import RunFolder

# The disk is full or gone. What was written before is whole.
_DISK_FAILED = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE)


@contextlib.contextmanager
def disk_failure_as_interruption(folder: RunFolder) -> Iterator[None]:
    """Turns the failure of a disk or an object store into Interrupted, which can go on later."""
    try:
        yield
    except OSError as error:
        if not isinstance(error, DiskFull | StoreError) and error.errno not in _DISK_FAILED:
            raise
        raise Interrupted(folder.path, one_line(error)) from error


@contextlib.contextmanager
def termination_as_interruption() -> Iterator[None]:
    """Lets SIGTERM, which clusters send, end the search as Ctrl-C does: Tune knows only SIGINT."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
