"""Mirrors the folders of a URL on this machine's disk.

All other code uses `Path`: a folder at a URL is worked on in a local folder, whose path tells the
URL. The files at the URL are the truth. A folder there is complete if it has its file of checksums,
which is uploaded last. For an ordinary path each function does the same on the disk, or nothing.
Functions that call the store raise StoreError.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import TypeVar
from urllib.parse import quote, unquote, urlsplit

from dpo_train.errors import StoreError
from dpo_train.storage import object_store
from dpo_train.storage.object_store import StoredFile

CHECKSUMS = ".seal.json"
"""The file of checksums of a folder. It is written and uploaded last."""
CACHE = "DPO_TUNE_CACHE"
"""The environment variable with the folder of mirrors, instead of ~/.cache/dpo-tune."""
_AT_ONCE = 16
"""Files that are copied at the same time."""

T = TypeVar("T")

_later: dict[Path, str | None] = {}
"""Files, or texts in their place, that the next `flush` uploads."""
_closed: dict[Path, str] = {}
"""Folders that this process may not change any more, and why."""
_texts: dict[tuple[Path, int, int], str] = {}
"""Texts that were downloaded, by path, modification time in ns and size in bytes."""


def is_url(location: str | Path) -> bool:
    """Return whether a location is a URL and not a path."""
    return "://" in str(location)


def local(location: str | Path) -> Path:
    """Return the local path of a location: a path itself, or the mirror of a URL."""
    if not is_url(location):
        return Path(location).expanduser()
    parts = urlsplit(str(location))
    store = quote(object_store.without_path(str(location)), safe="")
    return _root() / store / parts.path.strip("/")


def url(path: Path) -> str | None:
    """Return the URL that a path mirrors, or None for an ordinary path."""
    root = _root()
    if not path.is_relative_to(root) or path == root:
        return None
    bucket, *parts = path.relative_to(root).parts
    return urlsplit(unquote(bucket))._replace(path="/" + "/".join(parts)).geturl()


def name(path: Path) -> str:
    """Return the name of a path that other nodes understand: its URL, or the path itself."""
    return url(path) or str(path)


def shown(path: Path) -> str:
    """Return the name of a path for a user to type: its quoted URL, or the path itself."""
    remote = url(path)
    return str(path) if remote is None else shlex.quote(remote)


def put(file: Path, text: str | None = None) -> None:
    """Upload a file of this disk, or a text instead, to its URL."""
    if remote := url(file):
        _refuse_closed(file)
        _later.pop(file, None)
        object_store.send(remote, file if text is None else text)


def put_later(file: Path, text: str | None = None) -> None:
    """Upload a file, or a text instead, at the next `flush`: for files that may be lost."""
    if url(file) is not None:
        _later[file] = text


def flush() -> None:
    """Upload the files that `put_later` named. After an error they wait for the next flush."""
    for file in list(_later):
        text = _later.pop(file, None)  # the newest text, which may have changed meanwhile
        try:
            put(file, text)
        except StoreError:
            _later.setdefault(file, text)
            raise


def hand_over(folder: Path) -> None:
    """Upload a folder as `push` does, and remove it here, where it would fill up the disk: other
    nodes remove it only at the URL."""
    push(folder)
    forget(folder)


def push(folder: Path) -> None:
    """Upload a folder with checksums to its URL, the file of checksums last."""
    if remote := url(folder):
        _refuse_closed(folder)
        object_store.remove(remote, CHECKSUMS)
        files = [
            path for path in folder.rglob("*") if path.is_file() and path != folder / CHECKSUMS
        ]
        _each(put, files)
        put(folder / CHECKSUMS)


def pull(folder: Path) -> Path:
    """Download a folder with checksums from its URL, unless it is here already. Raises
    FileNotFoundError if it isn't complete at the URL."""
    remote = url(folder)
    if remote is None:
        return folder
    files = object_store.listed(remote)
    if CHECKSUMS not in files:
        raise FileNotFoundError(f"there is no {remote}")
    checksums = read_text(folder / CHECKSUMS)
    if _is_here(folder, files, checksums):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _each(lambda file: object_store.get(name(folder / file), partial / file), files)
        partial.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
    except OSError:
        if not _is_here(folder, files, checksums):  # another process may have downloaded it
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def fetch(file: Path) -> Path:
    """Replace the local file by that of its URL; remove it if the URL has none."""
    if remote := url(file):
        try:
            object_store.get(remote, file)
        except FileNotFoundError:
            file.unlink(missing_ok=True)
    return file


def fetch_once(file: Path) -> Path:
    """Download a file that never changes, unless it is here already."""
    return file if file.is_file() else fetch(file)


def bring_files(folder: Path) -> None:
    """Make the files directly in a folder the same as at its URL, except hidden files."""
    remote = url(folder)
    if remote is None:
        return
    files = object_store.listed(remote, recursive=False)
    files = {file: info for file, info in files.items() if not file.startswith(".")}
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("[!.]*"):
        if path.is_file() and path.name not in files:
            path.unlink(missing_ok=True)

    def bring(item: tuple[str, StoredFile]) -> None:
        path, info = folder / item[0], item[1]
        with contextlib.suppress(FileNotFoundError):
            stat = path.stat()
            if (stat.st_size, stat.st_mtime_ns) == (info.size, info.mtime_ns):
                return
        with contextlib.suppress(FileNotFoundError):  # it was removed at the URL just now
            object_store.get(name(path), path)
            os.utime(path, ns=(info.mtime_ns, info.mtime_ns))

    _each(bring, files.items())


def read_text(file: Path) -> str:
    """Return the text of a file, from its URL if it has one. Raises FileNotFoundError."""
    remote = url(file)
    return file.read_text(encoding="utf-8") if remote is None else object_store.read_text(remote)


def exists(file: Path) -> bool:
    """Return whether a file exists, at its URL if it has one."""
    remote = url(file)
    return file.is_file() if remote is None else object_store.exists(remote)


def sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of every file below a folder, by relative path."""
    if remote := url(folder):
        return {file: info.size for file, info in object_store.listed(remote).items()}
    found: dict[str, int] = {}
    for path in _walk(folder):
        with contextlib.suppress(OSError):  # it was removed just now, or is a broken link
            found[path.relative_to(folder).as_posix()] = path.stat().st_size
    return found


def _walk(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Yield every file below a folder, also below links. Circles of links are followed once."""
    real = folder.resolve()
    if real in above or not folder.is_dir():
        return
    with contextlib.suppress(FileNotFoundError, PermissionError):  # removed just now, or not ours
        for entry in list(folder.iterdir()):
            if entry.is_dir():
                yield from _walk(entry, above | {real})
            else:
                yield entry


def find(folder: Path, pattern: str) -> list[Path]:
    """Return the files below a folder whose relative path matches a pattern of `glob`."""
    if remote := url(folder):
        return sorted(folder / file for file in object_store.listed(remote) if _fits(file, pattern))
    return sorted(path for path in _glob(folder, pattern) if path.is_file())


def complete_texts(folder: Path, pattern: str) -> list[tuple[Path, str]]:
    """Return the files that `find` finds in folders with checksums, and the text of each."""
    texts: list[tuple[Path, str]] = []
    remote = url(folder)
    if remote is None:
        for path in _glob(folder, pattern):
            with contextlib.suppress(FileNotFoundError):  # it was removed just now
                if (path.parent / CHECKSUMS).is_file():
                    texts.append((path, path.read_text(encoding="utf-8")))
        return texts
    files = object_store.listed(remote)
    for file, info in files.items():
        path = folder / file
        if _fits(file, pattern) and (PurePath(file).parent / CHECKSUMS).as_posix() in files:
            known = (path, info.mtime_ns, info.size)
            with contextlib.suppress(FileNotFoundError):
                if known not in _texts:
                    _texts[known] = read_text(path)
                texts.append((path, _texts[known]))
    return texts


def remove(path: Path, first: str = CHECKSUMS) -> None:
    """Remove a file or folder, here and at its URL. In a folder the file `first` goes first, so
    that the folder is incomplete if this process dies meanwhile."""
    remote = url(path)
    if remote:
        _refuse_closed(path)
        for waiting in [file for file in _later if file == path or path in file.parents]:
            _later.pop(waiting, None)
    _remove_here(path)
    if remote:
        object_store.remove(remote, first)


def forget(path: Path) -> None:
    """Remove the local copy of a file or folder that has a URL."""
    if url(path) is not None:
        _remove_here(path)


def close(folder: Path, reason: str) -> None:
    """Forbid this process to change anything below a folder at its URL: it raises StoreError."""
    _closed[folder] = reason


def _root() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    cache = os.environ.get(CACHE) or os.path.join(home, "dpo-tune")
    # `Path.expanduser` raises if a container's user has no home, so we use `os.path`.
    return Path(os.path.expanduser(cache)).absolute() / "mirrors"


def _refuse_closed(path: Path) -> None:
    for folder, reason in _closed.items():
        if path.is_relative_to(folder):
            raise StoreError(reason)


def _remove_here(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_here(folder: Path, files: dict[str, StoredFile], checksums: str) -> bool:
    try:
        if (folder / CHECKSUMS).read_text(encoding="utf-8") != checksums:
            return False
        return all((folder / file).stat().st_size == info.size for file, info in files.items())
    except OSError:
        return False


def _glob(folder: Path, pattern: str) -> list[Path]:
    """Return the paths that match. `Path.glob` would raise if another process removes one."""
    return [folder / found for found in glob.glob(pattern, root_dir=folder)]


def _fits(file: str, pattern: str) -> bool:
    path = PurePath(file)
    return len(path.parts) == len(PurePath(pattern).parts) and path.match(pattern)


def _each(act: Callable[[T], None], items: Iterable[T]) -> None:
    """Call `act` with all items at the same time. Raises what the first failing call raises."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(act, items))
