"""Writes files whole, survives power cuts, and makes checksums."""

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dpo_train.storage import mirror
from dpo_train.storage.mirror import CHECKSUMS


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that readers see the old file or the new one, never a part of it.

    If the path mirrors a URL, write it there, too.
    """
    if mirror.url(path) is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    write_here(path, content)
    mirror.put(path, content if isinstance(content, str) else None)


def write_durably(path: Path, content: str | bytes) -> None:
    """Write a file as `write_atomically` does, so that it survives a power cut.

    This takes the disk some milliseconds longer.
    """
    if mirror.url(path) is not None:  # the file at the URL is the truth, and it is safe there
        write_atomically(path, content)
        return
    with _whole(path) as partial:
        partial.write_bytes(_bytes(content))
        sync(partial)
    sync(path.parent)


def write_here(path: Path, content: str | bytes) -> None:
    """Write a file as `write_atomically` does, but on this machine's disk only."""
    with _whole(path) as partial:
        partial.write_bytes(_bytes(content))


def follow_umask(folder: Path) -> None:
    """Give all files below a folder the mode that new files get here.

    Problem: safetensors lets only the owner read its files, even if others may read the folder.
    """
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def sync(path: Path) -> None:
    """Wait until a file's contents, or a folder's list of files, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Yield a file beside the path, which replaces it at the end, or is removed after an error.

    Several writers may write the same path at once, so each has a file of its own.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_native_id()}.part")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _bytes(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else content


def checksum(file: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def write_checksums(folder: Path) -> None:
    """Write the checksums of all files below a folder into it, so that damaged files are found."""
    (folder / CHECKSUMS).write_text(json.dumps(_checksums(folder), indent=1))


def checksums_match(folder: Path) -> bool:
    """Return whether the files are those whose checksums were written."""
    try:
        written = json.loads((folder / CHECKSUMS).read_text())
        return bool(written == _checksums(folder))
    except (OSError, ValueError):  # the file of checksums itself is missing or damaged
        return False


def _checksums(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): checksum(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != CHECKSUMS
    }
