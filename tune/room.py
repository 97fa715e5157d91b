"""A disk that is full, noticed whatever the library says that could not write."""

from __future__ import annotations

import contextlib
import errno
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_ROOM = 1 << 20
"""Bytes: a disk with less was filled by what just failed."""


class NoRoom(OSError):
    """The message says where."""


@contextlib.contextmanager
def leaving_no_part(part: Path) -> Iterator[None]:
    """Removes what was half written. Raises NoRoom if that was because the disk is full: each
    library says so in words of its own."""
    try:
        yield
    except Exception as error:
        places = [part, Path(tempfile.gettempdir())]
        full = next((place for place in places if _free(place) < _ROOM), None)
        shutil.rmtree(part, ignore_errors=True)
        said = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full is None and not said:
            raise
        raise NoRoom(f"no room on disk to save in {full or part.parent}") from error


def _free(place: Path) -> int:
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
