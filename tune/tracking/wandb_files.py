"""What W&B has in a run folder: the client's files, and `wandb.json`. Imports no client."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from netrc import NetrcParseError, netrc
from pathlib import Path
from urllib.parse import urlsplit

from dpo_train.command_line import script
from dpo_train.errors import StoreError
from dpo_train.storage import mirror
from dpo_train.storage.files import write_here
from tune.run_folder.document import Document
from tune.run_folder.paths import RunFolder

_PUBLIC = "https://wandb.ai"


class Memory(Document):
    """`wandb.json`: what a later driver session must know of this one. Holds no secret."""

    sweep: str | None = None
    """Path of the sweep that this search made: entity/project/id."""
    app: str | None = None
    """Where people see it: https://wandb.ai, or a server of their own."""
    told: dict[str, str] = {}
    """By id of a run that ended: the mode in which W&B was told all of it."""

    @classmethod
    def of(cls, folder: RunFolder) -> Memory:
        """The memory of a run folder; an empty one before the first driver session."""
        path = folder.path / "wandb.json"
        return cls.model_validate_json(path.read_text()) if path.exists() else cls()

    @property
    def public_page(self) -> str | None:
        """The page of the search's own sweep; none for a server that is not everyone's."""
        if not self.sweep or self.app != _PUBLIC:
            return None
        entity, project, sweep = self.sweep.split("/")
        return f"{_PUBLIC}/{entity}/{project}/sweeps/{sweep}"

    def save(self, folder: RunFolder) -> None:
        path = folder.path / "wandb.json"
        with (folder.path / "wandb" / ".memory").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # an heir writes too
            existing = Memory.of(folder)
            self.sweep, self.app = self.sweep or existing.sweep, self.app or existing.app
            self.told = existing.told | self.told
            write_here(path, self.model_dump_json(indent=1))
            # Files of runs that were told on disk lie on this machine alone.
            sent = {run: mode for run, mode in self.told.items() if mode == "online"}
            elsewhere = self.model_copy(update={"told": sent})
            with contextlib.suppress(StoreError):
                mirror.put(path, elsewhere.model_dump_json(indent=1))


def how_to_send(folder: RunFolder) -> str:
    """Says how many runs wait on disk and the command that sends them, after a login if there is
    none; empty if no run waits."""
    waiting = [path for path in _folders(folder) if not list(path.glob("*.wandb.synced"))]
    if not waiting:
        return ""
    runs = "1 run waits" if len(waiting) == 1 else f"{len(waiting)} runs wait"
    command = script("wandb", "sync", "--yes", str(folder.path / "wandb"))
    if not _has_login():
        command = f"{script('wandb', 'login')} && {command}"
    return f"W&B: {runs} on disk; to send: {command}"


def _has_login() -> bool:
    """Whether the client would find a key, as far as it can be told without its library."""
    if {"WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"} & os.environ.keys():
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    with contextlib.suppress(OSError, NetrcParseError):
        return netrc(os.environ.get("NETRC")).authenticators(host) is not None
    return False


def folders_of(folder: RunFolder, run_id: str) -> list[Path]:
    """The folders that the client wrote for a run, in this driver session or another."""
    name = re.compile(rf"(offline-)?run-\d+_\d+-{re.escape(run_id)}(-\d+)?")
    return [path for path in _folders(folder) if name.fullmatch(path.name)]


def mark_unsent(folder: RunFolder) -> None:
    """Names what an online run left on disk as the client names offline runs.

    What was sent has been removed. `wandb sync` passes over folders of online runs.
    """
    for path in _folders(folder):
        if path.name.startswith("run-"):
            with contextlib.suppress(OSError):
                path.rename(path.with_name(f"offline-{path.name}"))


def _folders(folder: RunFolder) -> list[Path]:
    found = (folder.path / "wandb").glob("*run-*/")
    return sorted(path for path in found if re.match(r"(offline-)?run-\d", path.name))
