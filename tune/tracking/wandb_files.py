"""Manages W&B's files in a run folder: the client's files, and `wandb.json`. Imports no client."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from netrc import NetrcParseError, netrc
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field

from dpo_train.command_line import script
from dpo_train.errors import StoreError
from dpo_train.storage import mirror
from dpo_train.storage.files import write_here
from tune.run_folder.document import Document
from tune.run_folder.paths import RunFolder

_PUBLIC = "https://wandb.ai"


class Memory(Document):
    """The content of `wandb.json`: what a later driver session must know. It has no secrets."""

    sweep: str | None = None
    """Path of the sweep that this search created: entity/project/id."""
    app: str | None = None
    """The address of the web page: https://wandb.ai, or that of the user's own server."""
    complete_runs: dict[str, str] = Field({}, alias="told")
    """The mode, online or offline, in which W&B got all of an ended run, by the run's id."""

    @classmethod
    def of(cls, folder: RunFolder) -> Memory:
        """Returns the memory of a run folder; an empty one before the first driver session."""
        path = folder.path / "wandb.json"
        return cls.model_validate_json(path.read_text()) if path.exists() else cls()

    @property
    def public_page(self) -> str | None:
        """The page of the search's own sweep; None if it is not on the public server."""
        if not self.sweep or self.app != _PUBLIC:
            return None
        entity, project, sweep = self.sweep.split("/")
        return f"{_PUBLIC}/{entity}/{project}/sweeps/{sweep}"

    def save(self, folder: RunFolder) -> None:
        """Merges this memory into `wandb.json`, and uploads the file for a run at a URL."""
        path = folder.path / "wandb.json"
        with (folder.path / "wandb" / ".memory").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # an heir writes too
            existing = Memory.of(folder)
            self.sweep, self.app = self.sweep or existing.sweep, self.app or existing.app
            self.complete_runs = existing.complete_runs | self.complete_runs
            write_here(path, self.model_dump_json(indent=1, by_alias=True))
            # Runs that were written to disk are only on this machine, so the URL's copy omits them.
            sent = {run: mode for run, mode in self.complete_runs.items() if mode == "online"}
            uploaded = self.model_copy(update={"complete_runs": sent})
            with contextlib.suppress(StoreError):
                mirror.put(path, uploaded.model_dump_json(indent=1, by_alias=True))


def how_to_send(folder: RunFolder) -> str:
    """Returns a line on how many runs wait on disk and the command that sends them.

    The command includes a login if there is none. Empty if no run waits.
    """
    waiting = [path for path in _folders(folder) if not list(path.glob("*.wandb.synced"))]
    if not waiting:
        return ""
    runs = "1 run waits" if len(waiting) == 1 else f"{len(waiting)} runs wait"
    command = script("wandb", "sync", "--yes", str(folder.path / "wandb"))
    if not _has_login():
        command = f"{script('wandb', 'login')} && {command}"
    return f"W&B: {runs} on disk; to send: {command}"


def _has_login() -> bool:
    """Returns whether the client would find a key, as far as we can check without its library."""
    if {"WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"} & os.environ.keys():
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    with contextlib.suppress(OSError, NetrcParseError):
        return netrc(os.environ.get("NETRC")).authenticators(host) is not None
    return False


def folders_of(folder: RunFolder, run_id: str) -> list[Path]:
    """Returns the folders that the client wrote for a run, in any driver session."""
    name = re.compile(rf"(offline-)?run-\d+_\d+-{re.escape(run_id)}(-\d+)?")
    return [path for path in _folders(folder) if name.fullmatch(path.name)]


def mark_unsent(folder: RunFolder) -> None:
    """Renames the folders of online runs that were not sent, so that `wandb sync` sends them.

    `wandb sync` skips folders of online runs, so they get the name of offline runs. Folders of runs
    that were sent have been removed.
    """
    for path in _folders(folder):
        if path.name.startswith("run-"):
            with contextlib.suppress(OSError):
                path.rename(path.with_name(f"offline-{path.name}"))


def _folders(folder: RunFolder) -> list[Path]:
    found = (folder.path / "wandb").glob("*run-*/")
    return sorted(path for path in found if re.match(r"(offline-)?run-\d", path.name))
