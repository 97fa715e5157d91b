"""An object store by the URLs that `pyarrow.fs` takes (S3, GCS, Azure): files there, one by one.

Knows no folders of this machine but the files that it reads and writes.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from dpo_train.errors import InputError, StoreError, one_line

_SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs")
_SECRET = ("secret", "password", "token", "access_key", "account_key", "sas")
_LONGEST = 200
"""Characters of a URL without its path: a folder here is named so."""


def refuse_unusable(field: str, place: str) -> None:
    """Raises InputError for a URL that can be seen to be wrong, or that holds a secret. Every path
    passes."""
    if "://" not in place:
        return
    url = place
    try:
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query))
        secret = parts.password is not None or (parts.scheme == "s3" and parts.username is not None)
    except ValueError as error:
        raise InputError(f"{field}: {url!r} is no URL: {error}") from None
    if secret or any(word in name.lower() for name in query for word in _SECRET):
        # Not the URL itself: what is printed may stand in a log.
        raise InputError(
            f"{field}: the {parts.scheme}:// URL holds a secret, which would be saved with the "
            "search; give it to every node as its store's own tools take it, like "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if parts.scheme not in _SCHEMES or not parts.netloc:
        raise InputError(
            f"{field}: {url!r} names no store; give a path, or a URL like s3://bucket/runs, "
            "gs://bucket/runs or abfs://container@account.dfs.core.windows.net/runs"
        )
    if len(without_path(url)) > _LONGEST:
        raise InputError(
            f"{field}: {url!r} is too long; give what stands behind its `?` by the environment, "
            "like AWS_ENDPOINT_URL"
        )


def without_path(url: str) -> str:
    """The bucket, and how to reach it."""
    return urlsplit(url)._replace(path="", fragment="").geturl()


def send(url: str, content: Path | str) -> None:
    """Brings a file, or a text, there. Raises StoreError."""
    from pyarrow import fs  # slow to import

    with _asking(url) as (system, path):
        if isinstance(content, Path):
            fs.copy_files(str(content), path, fs.LocalFileSystem(), system)
        else:
            with system.open_output_stream(path) as stream:
                stream.write(content.encode())


def get(url: str, to: Path) -> None:
    """Brings a file here, whole or not at all. Raises FileNotFoundError and StoreError."""
    from pyarrow import fs  # slow to import

    to.parent.mkdir(parents=True, exist_ok=True)
    descriptor, part = tempfile.mkstemp(prefix=f".{to.name}.", dir=to.parent)
    os.close(descriptor)
    try:
        with _reading(url) as (system, path):
            while True:
                fs.copy_files(path, part, system, fs.LocalFileSystem())
                if os.stat(part).st_size == system.get_file_info(path).size:
                    break
        os.chmod(part, 0o644)
        os.replace(part, to)
    finally:
        Path(part).unlink(missing_ok=True)


def read_text(url: str) -> str:
    """Raises FileNotFoundError and StoreError."""
    with _reading(url) as (system, path):
        while True:
            with system.open_input_stream(path) as stream:
                content: bytes = stream.read()
            if len(content) == system.get_file_info(path).size:
                break
    return content.decode()


def exists(url: str) -> bool:
    """Whether there is such a file. Raises StoreError."""
    with _asking(url) as (system, path):
        return bool(system.get_file_info(path).is_file)


@dataclass(frozen=True)
class StoredFile:
    """What a store says of a file."""

    size: int
    """In bytes."""
    mtime_ns: int


def listed(url: str, recursive: bool = True) -> dict[str, StoredFile]:
    """The files below a folder by relative path. Raises StoreError."""
    from pyarrow import fs  # slow to import

    with _asking(url) as (system, path):
        selector = fs.FileSelector(path, recursive=recursive, allow_not_found=True)
        found = [info for info in system.get_file_info(selector) if info.is_file]
    return {info.path[len(path) + 1 :]: StoredFile(info.size, info.mtime_ns) for info in found}


def remove(url: str, first: str) -> None:
    """Removes a file; or a folder, of which the file of the name `first` goes first. Raises
    StoreError."""
    from pyarrow import fs  # slow to import

    with _asking(url) as (system, path), contextlib.suppress(FileNotFoundError):
        kind = system.get_file_info(path)
        if kind.is_file:
            system.delete_file(path)
        elif kind.type == fs.FileType.Directory:
            if system.get_file_info(f"{path}/{first}").is_file:
                system.delete_file(f"{path}/{first}")
            system.delete_dir(path)


@contextlib.contextmanager
def _asking(url: str) -> Iterator[tuple[Any, str]]:
    """The file system, and what it calls the URL."""
    from pyarrow import ArrowException  # slow to import

    try:
        system, prefix = _connected(without_path(url))
        yield system, "/".join(filter(None, [prefix, urlsplit(url).path.strip("/")]))
    except (FileNotFoundError, StoreError):
        raise
    except (OSError, ArrowException) as error:
        raise StoreError(f"{url} can't be reached: {one_line(error, 300)}") from error


@contextlib.contextmanager
def _reading(url: str) -> Iterator[tuple[Any, str]]:
    """The same, and FileNotFoundError of what isn't there: a store that is asked for a file that
    was removed just now has words of its own.

    Who reads compares sizes: pyarrow asks for the size, then for so many bytes, and of what another
    node wrote in between the rest would be cut off.
    """
    try:
        with _asking(url) as place:
            yield place
    except StoreError:
        if exists(url):
            raise
        raise FileNotFoundError(f"there is no {url}") from None


@lru_cache
def _connected(store: str) -> tuple[Any, str]:
    """The file system, and what it puts before each path."""
    from pyarrow import fs  # slow to import

    parts = urlsplit(store)
    if parts.scheme == "s3":
        # A small file in one request, where three would ask whether it may be written.
        query = {"allow_delayed_open": "true", **dict(parse_qsl(parts.query))}
        parts = parts._replace(query=urlencode(query))
    system, prefix = fs.FileSystem.from_uri(parts._replace(path="/").geturl())
    return system, prefix.strip("/")
