"""Checksums of a folder's files, so that one that was cut short or altered is noticed."""

from __future__ import annotations

import json
from pathlib import Path

from dpo_train.storage.files import checksum
from dpo_train.storage.mirror import CHECKSUMS


def write_checksums(folder: Path) -> None:
    """Writes the checksums of all files below the folder into it."""
    (folder / CHECKSUMS).write_text(json.dumps(_checksums(folder), indent=1))


def checksums_match(folder: Path) -> bool:
    """Whether the files are those whose checksums were written."""
    try:
        written = json.loads((folder / CHECKSUMS).read_text())
        return bool(written == _checksums(folder))
    except (OSError, ValueError):  # of the file of checksums itself
        return False


def _checksums(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): checksum(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != CHECKSUMS
    }
