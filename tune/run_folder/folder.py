"""Where a run folder is: found by a name, a path or a URL, and opened.

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
    """The run folder that a path, a URL or a name means; of a URL what is there now is brought
    here. Raises InputError and StoreError."""
    if isinstance(run, RunFolder):
        run = run.path
    object_store.refuse_unusable("run", str(run))
    if not mirror.is_url(run):
        object_store.refuse_unusable(RUNS, runs_dir())
    there = mirror.local(runs_dir())
    places = [mirror.local(run)] if mirror.is_url(run) else [Path(run), there / run]
    for folder in map(RunFolder.at, places):
        if isinstance(run, str):
            refresh(folder)
        if folder.exists:
            return folder
    if mirror.is_url(run):
        raise InputError(f"there is no run at {run}; give a run's own URL, like s3://bucket/runs/x")
    known = sorted(path.parent.name for path in mirror.find(there, "*/run.json"))
    said = f"there are: {few(known)}" if known else "there is none"
    raise InputError(
        f"no run {str(run)!r}: give a run folder's path or name; under {mirror.name(there)}/ {said}"
    )


def remove_run(folder: RunFolder) -> None:
    """Removes a run folder, here and on its URL."""
    if folder.url is None:
        shutil.rmtree(folder.path)
    else:
        mirror.remove(folder.path, folder.run_json.name)


def forget_empty_run(folder: RunFolder) -> None:
    """Removes a run folder that has no trial yet."""
    if not mirror.find(folder.trials, "*.json"):
        remove_run(folder)


_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets it for the entry point of a job, and for nothing else."""


def refuse_private_folder(folder: RunFolder) -> None:
    """Raises InputError if a Ray job would write its run into the copy of its working directory.

    Ray removes that copy some time after the job, and no other node has it.
    """
    job = json.loads(os.environ.get(_JOB, "{}"))
    brought = (job.get("runtime_env") or {}).get("working_dir")
    if brought and folder.path.absolute().is_relative_to(Path.cwd()):
        raise InputError(
            f"runs_dir: {folder.path.parent} lies in this job's own folder, which no other node "
            f"sees and which goes with the job; set {RUNS} on the cluster's nodes, or type "
            "`--set runs_dir=/a/path/that/all/nodes/share`"
        )


def refuse_unwritable(folder: Path) -> None:
    """Raises InputError if no file can be made in a folder, or where it would stand."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise InputError(
            f"runs_dir: {folder} can't be written ({error.strerror}); give another place by "
            f"`--set runs_dir=…` or {RUNS}, or have it made writable"
        ) from None


def find_run_here(run: str) -> RunFolder:
    """The run folder on this node; of a URL what a trial reads there is brought here. Raises
    InputError on a node that does not see it."""
    folder, node = RunFolder.at(run), socket.gethostname()
    try:
        for file in (folder.search_yaml, folder.run_json):
            mirror.fetch(file)
    except StoreError as error:
        raise InputError(
            f"runs_dir: the node {node} can't read the run: {error}; every node needs the login "
            "in the environment in which its Ray was started"
        ) from None
    if not folder.exists:
        raise InputError(
            f"runs_dir: the node {node} does not see {folder}; give a path that all "
            f"nodes share, by {RUNS} or `--set runs_dir=…`, and mount it on every node; or a URL "
            "like s3://bucket/runs"
        )
    return folder


@dataclass(frozen=True)
class Run:
    """A run folder that was opened: it is read once and handed on."""

    folder: RunFolder
    config: SearchConfig
    """As resolved when the run began, and changed by `resume` since."""
    records: Records

    def with_config(self, config: SearchConfig) -> Run:
        """The same run under a configuration that differs in what may change. Bounds change which
        trial is the best, so records that were judged by others are read again."""
        if config.goal == self.config.goal:
            return replace(self, config=config)
        return Run(self.folder, config, Records(self.folder, config.goal))


def open_run(folder: RunFolder, sets_aside: bool = False) -> Run:
    """Reads the configuration and every record of a run folder, and warns of records that are
    damaged. Only the run's driver sets them aside. Raises InputError."""
    config = load_search(folder.search_yaml)
    records = Records(folder, config.goal)
    for damaged in records.damaged:
        damaged.warn(sets_aside)
    return Run(folder, config, records)


def runs_root() -> Path:
    """Where runs stand if no YAML says otherwise. Raises InputError."""
    object_store.refuse_unusable(RUNS, runs_dir())
    return mirror.local(runs_dir())
