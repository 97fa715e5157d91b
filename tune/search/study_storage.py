"""Opens the storage in which Optuna's study is kept for Optuna's own tools."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from dpo_train.errors import InputError, one_line

if TYPE_CHECKING:
    from optuna.storages import BaseStorage


def open_storage(storage: str | None) -> BaseStorage | None:
    """Open the database of a URL, or the journal file of a path; None is a study in memory.

    Raises InputError if it can't be opened.
    """
    if storage is None:
        return None
    import optuna  # slow to import
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock  # slow to import

    try:
        if "://" in storage:
            if storage.startswith("sqlite:///"):
                storage = f"sqlite:///{_made(storage.removeprefix('sqlite:///'))}"
            return optuna.storages.RDBStorage(storage)
        # Optuna's default lock, a symbolic link, can stay for ever after a kill, so we use another.
        path = _made(storage)
        journal = JournalFileBackend(path, lock_obj=JournalFileOpenLock(path))
        return optuna.storages.JournalStorage(journal)
    except Exception as error:  # each database driver has errors of its own
        raise InputError(
            f"storage: {_without_user(storage)} can't be opened ({one_line(error)}); give a URL "
            "like sqlite:///runs/studies.db or postgresql://host/name, or a journal file's path"
        ) from None


def _without_user(storage: str) -> str:
    """Return the path, or the part of a URL that may be printed."""
    if "://" not in storage:
        return repr(storage)
    parts = urlsplit(storage)
    return repr(f"{parts.scheme}://{parts.hostname or ''}{parts.path}")


def _made(file: str) -> str:
    """Return a file's absolute path, after making its folder."""
    path = Path(file).expanduser().absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    return str(path)
