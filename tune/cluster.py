"""What a search must know of the cluster it runs on: where run folders stand, who held which GPU.

The folder is the one thing that all nodes share. Ray is imported where it is asked.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from dpo_train.errors import InputError

if TYPE_CHECKING:
    from tune.config.schema import SearchConfig


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
