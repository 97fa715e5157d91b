"""Files written whole, their checksums, and what a power cut leaves of them."""

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
    """Readers see the old file or the new one, never a part; on the path's URL too, if it has
    one."""
    if mirror.url(path) is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    write_here(path, content)
    mirror.put(path, content if isinstance(content, str) else None)


def write_durably(path: Path, content: str | bytes) -> None:
    """The same, and a power cut leaves the new file. That takes some milliseconds of the disk."""
    if mirror.url(path) is not None:  # what is on the URL is the truth
        write_atomically(path, content)
        return
    with _whole(path) as part:
        part.write_bytes(_bytes(content))
        sync(part)
    sync(path.parent)


def write_here(path: Path, content: str | bytes) -> None:
    """`write_atomically` on this machine's disk alone."""
    with _whole(path) as part:
        part.write_bytes(_bytes(content))


def follow_umask(folder: Path) -> None:
    """Gives the files below a folder the mode that a new file gets here: safetensors lets nobody
    but the owner read its own, whoever may read the folder."""
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def sync(path: Path) -> None:
    """Waits until the disk has what was written of a file, or which files a folder has."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A file beside the path, which takes its place at the end; after an error nothing is left of
    it. Each writer has one of its own, for several may write the same path at once."""
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_native_id()}.part")
    try:
        yield part
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _bytes(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else content


def checksum(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def write_checksums(folder: Path) -> None:
    """Writes the checksums of all files below the folder into it, so that one that was cut short
    or altered is noticed."""
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
