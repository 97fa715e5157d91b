"""Room on disk: how much there is, and a disk that is full, whatever the writing library says."""

from __future__ import annotations

import contextlib
import errno
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dpo_train.errors import DiskFull

_ROOM = 1 << 20
"""Bytes: a disk with less was filled by what just failed."""


@contextlib.contextmanager
def discarding_partial(part: Path) -> Iterator[None]:
    """Removes what was half written. Raises DiskFull if that was because the disk is full: each
    library says so in words of its own."""
    try:
        yield
    except Exception as error:
        places = [part, Path(tempfile.gettempdir())]
        full = next((place for place in places if free_bytes(place) < _ROOM), None)
        shutil.rmtree(part, ignore_errors=True)
        said = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full is None and not said:
            raise
        raise DiskFull(f"no space left on disk in {full or part.parent}") from error


def free_bytes(folder: Path) -> int:
    """Free disk where the folder stands or would stand."""
    folder = folder.expanduser().absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
