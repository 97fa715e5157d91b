"""What a search must know of the cluster it runs on: where run folders stand, who held which GPU.

The folder is the one thing that all nodes share. Ray is imported where it is asked.
"""

from __future__ import annotations

import json
import math
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo_train.errors import InputError
from dpo_train.storage import mirror
from dpo_train.storage.object_store import StoreFailed
from tune.config.places import RUNS

if TYPE_CHECKING:
    from tune.config.schema import SearchConfig

_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets it for the entry point of a job, and for nothing else."""


def refuse_private_folder(folder: Path) -> None:
    """Raises InputError if a Ray job would write its run into the copy of its working directory.

    Ray removes that copy some time after the job, and no other node has it.
    """
    job = json.loads(os.environ.get(_JOB, "{}"))
    brought = (job.get("runtime_env") or {}).get("working_dir")
    if brought and folder.absolute().is_relative_to(Path.cwd()):
        raise InputError(
            f"runs_dir: {folder.parent} lies in this job's own folder, which no other node sees "
            f"and which goes with the job; set {RUNS} on the cluster's nodes, or type "
            "`--set runs_dir=/a/path/that/all/nodes/share`"
        )


def find_run_here(run: str) -> Path:
    """The run folder on this node; of a URL what a trial reads there is brought here. Raises
    InputError on a node that does not see it."""
    folder, node = mirror.local(run), socket.gethostname()
    try:
        for name in ("search.yaml", "run.json"):
            mirror.fetch(folder / name)
    except StoreFailed as error:
        raise InputError(
            f"runs_dir: the node {node} can't read the run: {error}; every node needs the login "
            "in the environment in which its Ray was started"
        ) from None
    if not (folder / "run.json").is_file():
        raise InputError(
            f"runs_dir: the node {node} does not see {mirror.shown(folder)}; give a path that all "
            f"nodes share, by {RUNS} or `--set runs_dir=…`, and mount it on every node; or a URL "
            "like s3://bucket/runs"
        )
    return folder


def refuse_or_wait(config: SearchConfig) -> None:
    """Raises InputError if this machine's own Ray lacks what a trial wants; of a cluster elsewhere,
    which may grow, says so and waits."""
    import ray

    there = ray.cluster_resources()
    for name, amount in _wanted(config).items():
        if amount <= there.get(name, 0):
            continue
        wants = f"resources.{name.lower()}s: a trial wants {amount:g}"
        if not os.environ.get("RAY_ADDRESS"):
            raise InputError(f"{wants}, this machine has {there.get(name, 0):g}")
        print(f"{wants}, the cluster has {there.get(name, 0):g} yet; waiting for more", flush=True)


def room_for_trials(config: SearchConfig) -> int:
    """How many trials the cluster can hold at once, as it is now.

    With `at_once` and a cluster elsewhere so many, held or not: each that waits calls for a node.
    """
    import ray

    at_once = config.resources.at_once
    if at_once and os.environ.get("RAY_ADDRESS"):
        return at_once
    there = ray.cluster_resources()
    return int(min(there.get(name, 0) / amount for name, amount in _wanted(config).items()))


def _wanted(config: SearchConfig) -> dict[str, float]:
    """What one trial takes, by Ray's names."""
    from tune.group import bundles

    wanted = bundles(config.resources).required_resources
    # Ray's own precision: a sum of parts may be a little more than the whole.
    return {name: round(amount, 4) for name, amount in wanted.items()}


def overfull(config: SearchConfig, report: Mapping[str, float]) -> str:
    """What to say of a trial that took more memory than its fraction of a GPU; empty if none did.

    Memory can't be fenced in: where one takes more than its share, another will find none.
    """
    share, total = config.resources.gpus, report.get("device_memory_gb", 0.0)
    took = report.get("peak_memory_gb", 0.0)
    if config.trainer != "trl" or not 0 < share < 1 or took <= share * total:
        return ""
    fit = max(1, int(total / took))
    return (
        f"resources.gpus: a trial took {took:.1f} GB, and {share:g} of this GPU is "
        f"{share * total:.1f} of {total:.1f} GB; {fit} would fit: type "
        f"`--set resources.gpus={math.floor(1000 / fit) / 1000:g} --name NEW`"
    )


def keep_secrets_out_of_ray() -> None:
    """Tune would copy AWS's keys from the driver into the trials' runtime environment, which Ray's
    dashboard and logs show. A node has keys of its own, or needs none."""
    from ray.tune.execution import class_cache

    kept = (name for name in class_cache.ENV_VARS_TO_PROPAGATE if not name.startswith("AWS_"))
    class_cache.ENV_VARS_TO_PROPAGATE = set(kept)


class Places:
    """`places.jsonl` in the run folder: which trial took which place, and when.

    One line each time: `at` (Unix time), `trial`, `node` (its address), `gpus` (as the process
    sees them), `pid`. A trial holds its place until its next line or its end.
    """

    def __init__(self, run: Path) -> None:
        self._file = run / "places.jsonl"
        self._last: dict[str, dict[str, Any]] = {}

    def note(self, trial: str, place: dict[str, Any], at: float) -> None:
        if self._last.get(trial) != place:
            self._last[trial] = place
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"at": at, "trial": trial, **place}) + "\n")
            mirror.put_later(self._file)
