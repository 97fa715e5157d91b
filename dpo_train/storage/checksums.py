"""Checksums of a folder's files, so that one that was cut short or altered is noticed."""

from __future__ import annotations

import json
from pathlib import Path

from dpo_train.storage.files import checksum
from dpo_train.storage.mirror import SEAL


def seal(folder: Path) -> None:
    """Writes the checksums of all files below the folder into it."""
    (folder / SEAL).write_text(json.dumps(_checksums(folder), indent=1))


def is_whole(folder: Path) -> bool:
    """Whether the files are those that were sealed."""
    try:
        sealed = json.loads((folder / SEAL).read_text())
        return bool(sealed == _checksums(folder))
    except (OSError, ValueError):  # the seal itself
        return False


def _checksums(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): checksum(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != SEAL
    }
