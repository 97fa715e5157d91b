"""Files written whole, and their checksums."""

import hashlib
from pathlib import Path

from dpo_train.storage import mirror


def write_atomically(path: Path, text: str) -> None:
    """Readers see the old file or the new one, never a part; on the path's URL too, if it has
    one."""
    if mirror.url(path) is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    write_here(path, text)
    mirror.put(path, text)


def write_here(path: Path, text: str) -> None:
    """The same on this machine's disk alone."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def checksum(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
