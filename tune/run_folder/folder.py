"""Finds a run folder by a name, a path or a URL, and opens it.

Refuses a folder that other nodes of the cluster would not see.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from dpo_train.config_fields import few
from dpo_train.errors import InputError, StoreError
from dpo_train.storage import mirror, object_store
from tune.config.load import load_search
from tune.config.places import RUNS, runs_dir
from tune.config.schema import SearchConfig
from tune.run_folder.driver_lease import refresh
from tune.run_folder.paths import RunFolder, RunLike
from tune.run_folder.records import Records


def find_run(run: RunLike) -> RunFolder:
    """Returns the run folder that a path, a URL or a name means.

    The documents of a run at a URL are downloaded. Raises InputError and StoreError.
    """
    if isinstance(run, RunFolder):
        run = run.path
    object_store.refuse_unusable("run", str(run))
    if not mirror.is_url(run):
        object_store.refuse_unusable(RUNS, runs_dir())
    root = mirror.local(runs_dir())
    candidates = [mirror.local(run)] if mirror.is_url(run) else [Path(run), root / run]
    for folder in map(RunFolder.at, candidates):
        if isinstance(run, str):
            refresh(folder)
        if folder.exists:
            return folder
    if mirror.is_url(run):
        raise InputError(f"there is no run at {run}; give a run's own URL, like s3://bucket/runs/x")
    known = sorted(path.parent.name for path in mirror.find(root, "*/run.json"))
    existing = f"there are: {few(known)}" if known else "there is none"
    raise InputError(
        f"no run {str(run)!r}: give a run folder's path or name; under {mirror.name(root)}/ "
        f"{existing}"
    )


def remove_run(folder: RunFolder) -> None:
    """Removes a run folder, here and at its URL."""
    if folder.url is None:
        shutil.rmtree(folder.path)
    else:
        mirror.remove(folder.path, folder.run_json.name)


def forget_empty_run(folder: RunFolder) -> None:
    """Removes a run folder that has no trial yet."""
    if not mirror.find(folder.trials, "*.json"):
        remove_run(folder)


_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets this variable for the entry point of a job only."""


def refuse_private_folder(folder: RunFolder) -> None:
    """Raises InputError if a Ray job would write its run into the copy of its working directory.

    Ray removes that copy some time after the job, and no other node has it.
    """
    job = json.loads(os.environ.get(_JOB, "{}"))
    working_dir = (job.get("runtime_env") or {}).get("working_dir")
    if working_dir and folder.path.absolute().is_relative_to(Path.cwd()):
        raise InputError(
            f"runs_dir: {folder.path.parent} is inside this job's own folder, which no other node "
            f"sees and which Ray removes after the job; set {RUNS} on the cluster's nodes, or type "
            "`--set runs_dir=/a/path/that/all/nodes/share`"
        )


def refuse_unwritable(folder: Path) -> None:
    """Raises InputError if no file can be created in a folder, which may not exist yet."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise InputError(
            f"runs_dir: {folder} can't be written ({error.strerror}); give another folder with "
            f"`--set runs_dir=…` or {RUNS}, or make it writable"
        ) from None


def find_run_here(run: str) -> RunFolder:
    """Returns the run folder on this node. For a run at a URL, its configuration is downloaded.

    Raises InputError on a node that does not see the folder.
    """
    folder, node = RunFolder.at(run), socket.gethostname()
    try:
        for file in (folder.search_yaml, folder.run_json):
            mirror.fetch(file)
    except StoreError as error:
        raise InputError(
            f"runs_dir: the node {node} can't read the run: {error}; on every node, start Ray with "
            "the login in its environment"
        ) from None
    if not folder.exists:
        raise InputError(
            f"runs_dir: the node {node} does not see {folder}; give a path that all nodes share, "
            f"with {RUNS} or `--set runs_dir=…`, and mount it on every node; or give a URL like "
            "s3://bucket/runs"
        )
    return folder


@dataclass(frozen=True)
class Run:
    """An opened run folder: it is read once and passed on."""

    folder: RunFolder
    config: SearchConfig
    """The configuration as resolved when the run began, with the changes by `resume`."""
    records: Records

    def with_config(self, config: SearchConfig) -> Run:
        """Returns this run with a changed configuration.

        Other bounds change which trial is the best, so the records are then read again.
        """
        if config.goal == self.config.goal:
            return replace(self, config=config)
        return Run(self.folder, config, Records(self.folder, config.goal))


def open_run(folder: RunFolder, sets_aside: bool = False) -> Run:
    """Opens a run folder: reads its configuration and all records, and warns of damaged ones.

    With `sets_aside`, damaged records are renamed; only the run's driver does so. Raises
    InputError.
    """
    config = load_search(folder.search_yaml)
    records = Records(folder, config.goal)
    for damaged in records.damaged:
        damaged.warn(sets_aside)
    return Run(folder, config, records)


def runs_root() -> Path:
    """Returns the folder of all runs, unless a YAML gives another one. Raises InputError."""
    object_store.refuse_unusable(RUNS, runs_dir())
    return mirror.local(runs_dir())
