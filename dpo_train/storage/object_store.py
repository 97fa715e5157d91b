"""Reads and writes single files of an object store (S3, GCS, Azure), by the URLs of `pyarrow.fs`.

This module knows no folders of this machine, only the files that it copies.
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
"""Options of pyarrow's file systems that are allowed in a URL. Others may be secrets."""
_OPTIONS |= {"gcs": _OPTIONS["gs"], "abfss": _OPTIONS["abfs"]}
_WITH_USER = ("abfs", "abfss", "hdfs")
"""Schemes whose name before the `@` is a container or a user, and not a secret."""
_LONGEST = 200
"""Most characters of a URL without its path, because a local folder gets this name."""


def refuse_unusable(field: str, location: str) -> None:
    """Raise InputError for a URL that is invalid or holds a secret. Every path is accepted.

    `field` is the setting that the error names.
    """
    if "://" not in location:
        return
    # Errors may be kept in a log, so they do not show what may be a secret in the URL.
    try:
        parts = urlsplit(location)
        options = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
        user, password = parts.username, parts.password
    except ValueError:
        raise InputError(f"{field}: it looks like a URL, but is not a valid one; give a path, or a "
                         "URL like s3://bucket/runs") from None  # fmt: skip
    if parts.scheme not in _SCHEMES or not parts.netloc:
        raise InputError(
            f"{field}: this {parts.scheme}:// URL names no store; give a path, or a URL like "
            "s3://bucket/runs, gs://bucket/runs or abfs://container@account.dfs.core.windows.net/runs"
        )
    # The URL is stored with the search, so it must hold no secret.
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
    if len(without_path(location)) > _LONGEST:
        raise InputError(
            f"{field}: the {parts.scheme}:// URL is too long; give the options after its `?` by "
            "the environment, like AWS_ENDPOINT_URL"
        )


def without_path(url: str) -> str:
    """Return a URL without its path: the bucket, and the options to reach it."""
    return urlsplit(url)._replace(path="", fragment="").geturl()


def send(url: str, content: Path | str) -> None:
    """Upload a file, or a text, to a URL. Raises StoreError."""
    from pyarrow import fs  # slow to import

    with _opened(url) as (system, path):
        if isinstance(content, Path):
            fs.copy_files(str(content), path, fs.LocalFileSystem(), system)
        else:
            with system.open_output_stream(path) as stream:
                stream.write(content.encode())


def get(url: str, to: Path) -> None:
    """Download a whole file or nothing. Raises FileNotFoundError and StoreError."""
    from pyarrow import fs  # slow to import

    to.parent.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(prefix=f".{to.name}.", dir=to.parent)
    os.close(descriptor)
    try:
        with _reading(url) as (system, path):
            while True:
                fs.copy_files(path, partial, system, fs.LocalFileSystem())
                if os.stat(partial).st_size == system.get_file_info(path).size:
                    break
        os.chmod(partial, 0o644)
        os.replace(partial, to)
    finally:
        Path(partial).unlink(missing_ok=True)


def read_text(url: str) -> str:
    """Return the text of a file at a URL. Raises FileNotFoundError and StoreError."""
    with _reading(url) as (system, path):
        while True:
            with system.open_input_stream(path) as stream:
                content: bytes = stream.read()
            if len(content) == system.get_file_info(path).size:
                break
    return content.decode()


def exists(url: str) -> bool:
    """Return whether a file exists at a URL. Raises StoreError."""
    with _opened(url) as (system, path):
        return bool(system.get_file_info(path).is_file)


@dataclass(frozen=True)
class StoredFile:
    """The size and time of a file in a store."""

    size: int
    """In bytes."""
    mtime_ns: int


def listed(url: str, recursive: bool = True) -> dict[str, StoredFile]:
    """Return the files below a folder, by relative path. Raises StoreError."""
    from pyarrow import fs  # slow to import

    with _opened(url) as (system, path):
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
    """Remove a file or a folder. In a folder the file named `first` is removed first.

    Raises StoreError.
    """
    from pyarrow import fs  # slow to import

    with _opened(url) as (system, path), contextlib.suppress(FileNotFoundError):
        kind = system.get_file_info(path)
        if kind.is_file:
            system.delete_file(path)
        elif kind.type == fs.FileType.Directory:
            if system.get_file_info(f"{path}/{first}").is_file:
                system.delete_file(f"{path}/{first}")
            system.delete_dir(path)


@contextlib.contextmanager
def _opened(url: str) -> Iterator[tuple[Any, str]]:
    """Yield the file system of a URL, and the path in it. Raises StoreError."""
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
    """Yield the same as `_opened`, and raise FileNotFoundError if the file is missing.

    Each store has its own error for a file that was removed just now, so we ask whether it exists.

    Problem: pyarrow asks for the size first and then reads so many bytes. If another node writes a
    longer file in between, its end is cut off. So callers compare the sizes, and read again.
    """
    try:
        with _opened(url) as opened:
            yield opened
    except StoreError:
        if exists(url):
            raise
        raise FileNotFoundError(f"there is no {url}") from None


@lru_cache
def _connected(store: str) -> tuple[Any, str]:
    """Return the file system of a store, and the prefix of its paths."""
    from pyarrow import fs  # slow to import

    parts = urlsplit(store)
    if parts.scheme == "s3":
        # With this option a small file takes one request instead of three.
        query = {"allow_delayed_open": "true", **dict(parse_qsl(parts.query))}
        parts = parts._replace(query=urlencode(query))
    system, prefix = fs.FileSystem.from_uri(parts._replace(path="/").geturl())
    return system, prefix.strip("/")
