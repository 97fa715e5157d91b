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
_OPTIONS = {
    "s3": (
        "region", "scheme", "endpoint_override", "allow_bucket_creation", "allow_bucket_deletion",
        "check_directory_existence_before_creation", "tls_verify_certificates",
    ),
    "gs": ("scheme", "endpoint_override", "retry_limit_seconds", "project_id"),
    "abfs": (
        "blob_storage_authority", "dfs_storage_authority", "blob_storage_scheme",
        "dfs_storage_scheme", "enable_tls", "credential_kind", "tenant_id", "client_id",
    ),
    "hdfs": ("replication", "buffer_size", "default_block_size"),
}  # fmt: skip
"""Options of pyarrow's file systems that may stand in a URL. Others may be secrets."""
_OPTIONS |= {"gcs": _OPTIONS["gs"], "abfss": _OPTIONS["abfs"]}
_WITH_USER = ("abfs", "abfss", "hdfs")
"""Of these a name before the `@` is a container or a user, and no secret."""
_LONGEST = 200
"""Characters of a URL without its path: a folder here is named so."""


def refuse_unusable(field: str, place: str) -> None:
    """Raises InputError for a URL that can be seen to be wrong, or that holds a secret. Every path
    passes."""
    if "://" not in place:
        return
    # Of the URL nothing that may be a secret is said: what is printed may stand in a log.
    try:
        parts = urlsplit(place)
        options = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
        user, password = parts.username, parts.password
    except ValueError:
        raise InputError(f"{field}: it looks like a URL, but is not a valid one; give a path, or a "
                         "URL like s3://bucket/runs") from None  # fmt: skip
    if parts.scheme not in _SCHEMES or not parts.netloc:
        raise InputError(
            f"{field}: {parts.scheme}:// is not the URL of a store that can be used; give a path, "
            "or a URL like s3://bucket/runs, gs://bucket/runs or "
            "abfs://container@account.dfs.core.windows.net/runs"
        )
    known = _OPTIONS[parts.scheme]
    if (
        password is not None
        or (user is not None and parts.scheme not in _WITH_USER)
        or (set(options) - set(known))
    ):
        raise InputError(
            f"{field}: the {parts.scheme}:// URL holds a secret or an unknown option, and would be "
            f"saved with the search; allowed options are {', '.join(known)}; give every node its "
            "login by the environment, like AWS_SECRET_ACCESS_KEY"
        )
    if len(without_path(place)) > _LONGEST:
        raise InputError(
            f"{field}: the {parts.scheme}:// URL is too long; give the options after its `?` by "
            "the environment, like AWS_ENDPOINT_URL"
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
    names = {info.path[len(path) + 1 :]: StoredFile(info.size, info.mtime_ns) for info in found}
    for name in names:  # each becomes a path on this machine
        if name.startswith("/") or ".." in name.split("/"):
            raise StoreError(
                f"{url} has the object {name!r}, which would be written outside of its folder here"
            )
    return names


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
