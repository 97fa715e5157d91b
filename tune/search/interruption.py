"""Turns disk failures and signals into Interrupted, which says how to continue the search."""

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

# With these errors the disk is full or gone. Files that were written before are whole.
_DISK_FAILED = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE)


@contextlib.contextmanager
def disk_failure_as_interruption(folder: RunFolder) -> Iterator[None]:
    """Raise Interrupted if the disk or the object store fails. The search can go on later."""
    try:
        yield
    except OSError as error:
        if not isinstance(error, DiskFull | StoreError) and error.errno not in _DISK_FAILED:
            raise
        raise Interrupted(folder.path, one_line(error)) from error


@contextlib.contextmanager
def termination_as_interruption() -> Iterator[None]:
    """Let SIGTERM, which clusters send, end the search as Ctrl-C does: Tune handles only SIGINT."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
