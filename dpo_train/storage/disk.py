"""Measures free disk space, and recognises a full disk whatever a library's error says."""

from __future__ import annotations

import contextlib
import errno
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dpo_train.errors import DiskFull

_MIN_FREE_BYTES = 1 << 20
"""A disk with fewer free bytes than this counts as full after a write has failed."""


@contextlib.contextmanager
def discarding_partial(partial: Path) -> Iterator[None]:
    """Remove a half-written folder after an error, and raise DiskFull if the disk is full.

    Each library has its own error for a full disk, so we look at the free space as well.
    """
    try:
        yield
    except Exception as error:
        folders = [partial, Path(tempfile.gettempdir())]
        full = next((folder for folder in folders if free_bytes(folder) < _MIN_FREE_BYTES), None)
        shutil.rmtree(partial, ignore_errors=True)
        is_disk_error = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full is None and not is_disk_error:
            raise
        raise DiskFull(f"no space left on disk in {full or partial.parent}") from error


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk that holds the folder, or would hold it."""
    folder = folder.expanduser().absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
