"""Folders that stand at a URL, worked on here.

All other code speaks `Path`: what stands at a URL is worked on in a folder of this machine that
mirrors it, and whose path says of which URL. What is on the URL is the truth. A folder there is
whole if it has its seal, which is brought last. For a path that mirrors nothing each function does
the same on the disk, or nothing. What asks the store raises StoreError.
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
"""The file of a folder that is written, and brought, last."""
CACHE = "DPO_TUNE_CACHE"
"""Where mirrors stand, in place of ~/.cache/dpo-tune."""
_AT_ONCE = 16
"""Files that travel at the same time."""

T = TypeVar("T")

_later: dict[Path, str | None] = {}
_closed: dict[Path, str] = {}
_texts: dict[tuple[Path, int, int], str] = {}


def is_url(place: str | Path) -> bool:
    return "://" in str(place)


def local(place: str | Path) -> Path:
    """Where a place is worked on here: a path itself, or the mirror of a URL."""
    if not is_url(place):
        return Path(place).expanduser()
    parts = urlsplit(str(place))
    return _root() / quote(object_store.without_path(str(place)), safe="") / parts.path.strip("/")


def url(path: Path) -> str | None:
    """The URL that a path mirrors, if it does."""
    root = _root()
    if not path.is_relative_to(root) or path == root:
        return None
    bucket, *parts = path.relative_to(root).parts
    return urlsplit(unquote(bucket))._replace(path="/" + "/".join(parts)).geturl()


def name(path: Path) -> str:
    """What other nodes know the path by: its URL, or itself."""
    return url(path) or str(path)


def shown(path: Path) -> str:
    """The same for a person, who may type it."""
    there = url(path)
    return str(path) if there is None else shlex.quote(there)


def put(file: Path, text: str | None = None) -> None:
    """Brings a file of this disk, or a text in its place, onto its URL."""
    if there := url(file):
        _refuse_closed(file)
        _later.pop(file, None)
        object_store.send(there, file if text is None else text)


def put_later(file: Path, text: str | None = None) -> None:
    """The same at the next `flush`: for what changes often and may be lost."""
    if url(file) is not None:
        _later[file] = text


def flush() -> None:
    """What can't be brought now waits for the next."""
    for file in list(_later):
        text = _later.pop(file, None)  # the newest, and not what it was when this began
        try:
            put(file, text)
        except StoreError:
            _later.setdefault(file, text)
            raise


def hand_over(folder: Path) -> None:
    """`push`, after which the folder is on its URL alone: each node's disk would fill up with what
    others remove."""
    push(folder)
    forget(folder)


def push(folder: Path) -> None:
    """Brings a sealed folder onto its URL, its seal last."""
    if there := url(folder):
        _refuse_closed(folder)
        object_store.remove(there, CHECKSUMS)
        files = [
            path for path in folder.rglob("*") if path.is_file() and path != folder / CHECKSUMS
        ]
        _each(put, files)
        put(folder / CHECKSUMS)


def pull(folder: Path) -> Path:
    """Brings a sealed folder here from its URL, unless it is here. Raises FileNotFoundError if it
    isn't there whole."""
    there = url(folder)
    if there is None:
        return folder
    files = object_store.listed(there)
    if CHECKSUMS not in files:
        raise FileNotFoundError(f"there is no {there}")
    seal = read_text(folder / CHECKSUMS)
    if _is_here(folder, files, seal):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _each(lambda file: object_store.get(name(folder / file), part / file), files)
        part.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        part.replace(folder)
    except OSError:
        if not _is_here(folder, files, seal):  # by another process, just now
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def fetch(file: Path) -> Path:
    """Brings a file here from its URL, whether it is here or not; an older one that isn't there
    any more is removed."""
    if there := url(file):
        try:
            object_store.get(there, file)
        except FileNotFoundError:
            file.unlink(missing_ok=True)
    return file


def fetch_once(file: Path) -> Path:
    """The same of a file that never changes, unless it is here."""
    return file if file.is_file() else fetch(file)


def bring_files(folder: Path) -> None:
    """Makes the files that stand directly in a folder here those of its URL; hidden ones are each
    side's own."""
    there = url(folder)
    if there is None:
        return
    files = object_store.listed(there, recursive=False)
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
        with contextlib.suppress(FileNotFoundError):  # removed there just now
            object_store.get(name(path), path)
            os.utime(path, ns=(info.mtime_ns, info.mtime_ns))

    _each(bring, files.items())


def read_text(file: Path) -> str:
    """Raises FileNotFoundError."""
    there = url(file)
    return file.read_text(encoding="utf-8") if there is None else object_store.read_text(there)


def exists(file: Path) -> bool:
    """Whether there is such a file."""
    there = url(file)
    return file.is_file() if there is None else object_store.exists(there)


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file below a folder, by relative path."""
    if there := url(folder):
        return {file: info.size for file, info in object_store.listed(there).items()}
    found: dict[str, int] = {}
    for path in _walk(folder):
        with contextlib.suppress(OSError):  # removed just now, or a link that leads nowhere
            found[path.relative_to(folder).as_posix()] = path.stat().st_size
    return found


def _walk(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Every file below a folder, also below links, of which one may lead back above itself."""
    real = folder.resolve()
    if real in above or not folder.is_dir():
        return
    with contextlib.suppress(FileNotFoundError):  # removed just now
        for entry in list(folder.iterdir()):
            if entry.is_dir():
                yield from _walk(entry, above | {real})
            else:
                yield entry


def find(folder: Path, pattern: str) -> list[Path]:
    """The files below a folder whose relative path matches, as `glob` has it."""
    if there := url(folder):
        return sorted(folder / file for file in object_store.listed(there) if _fits(file, pattern))
    return sorted(path for path in _glob(folder, pattern) if path.is_file())


def complete_texts(folder: Path, pattern: str) -> list[tuple[Path, str]]:
    """The same with the text of each, of those that stand in a sealed folder."""
    texts: list[tuple[Path, str]] = []
    there = url(folder)
    if there is None:
        for path in _glob(folder, pattern):
            with contextlib.suppress(FileNotFoundError):  # removed just now
                if (path.parent / CHECKSUMS).is_file():
                    texts.append((path, path.read_text(encoding="utf-8")))
        return texts
    files = object_store.listed(there)
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
    """Removes a file or folder, here and on its URL; of a folder, the file of that name goes
    first: what is left by a death is not whole."""
    there = url(path)
    if there:
        _refuse_closed(path)
        for waiting in [file for file in _later if file == path or path in file.parents]:
            _later.pop(waiting, None)
    _remove_here(path)
    if there:
        object_store.remove(there, first)


def forget(path: Path) -> None:
    """Removes what is here of something that is on a URL."""
    if url(path) is not None:
        _remove_here(path)


def close(folder: Path, reason: str) -> None:
    """From now on this process changes nothing below a folder on its URL: it raises StoreError."""
    _closed[folder] = reason


def _root() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    cache = os.environ.get(CACHE) or os.path.join(home, "dpo-tune")
    # Not Path's own, which raises where a container's user has no home.
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


def _is_here(folder: Path, files: dict[str, StoredFile], seal: str) -> bool:
    try:
        if (folder / CHECKSUMS).read_text(encoding="utf-8") != seal:
            return False
        return all((folder / file).stat().st_size == info.size for file, info in files.items())
    except OSError:
        return False


def _glob(folder: Path, pattern: str) -> list[Path]:
    """What another process removes meanwhile is passed over, where `Path.glob` raises."""
    return [folder / found for found in glob.glob(pattern, root_dir=folder)]


def _fits(file: str, pattern: str) -> bool:
    path = PurePath(file)
    return len(path.parts) == len(PurePath(pattern).parts) and path.match(pattern)


def _each(act: Callable[[T], None], items: Iterable[T]) -> None:
    """At the same time; raises what the first that fails raises."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(act, items))
