"""What a trial takes of a Ray cluster, and how many trials the cluster holds."""

from __future__ import annotations

import os

import ray
from ray.tune import PlacementGroupFactory
from ray.tune.execution import class_cache

from dpo_train.errors import InputError
from tune.config.schema import ResourcesConfig, SearchConfig


def refuse_or_wait(config: SearchConfig) -> None:
    """Raises InputError if this machine's own Ray lacks what a trial wants; of a cluster elsewhere,
    which may grow, says so and waits."""
    there = ray.cluster_resources()
    for name, amount in _wanted(config).items():
        if amount <= there.get(name, 0):
            continue
        wants = f"resources.{name.lower()}s: a trial wants {amount:g}"
        if not os.environ.get("RAY_ADDRESS"):
            raise InputError(f"{wants}, this machine has {there.get(name, 0):g}")
        print(f"{wants}, the cluster has {there.get(name, 0):g} yet; waiting for more", flush=True)


def trial_capacity(config: SearchConfig, broken_gpus: int = 0) -> int:
    """How many trials the cluster can hold at once, as it is now, without its broken GPUs.

    With `at_once` and a cluster elsewhere so many, held or not: each that waits calls for a node.
    """
    at_once = config.resources.at_once
    if at_once and os.environ.get("RAY_ADDRESS"):
        return at_once
    there = ray.cluster_resources()
    there["GPU"] = there.get("GPU", 0) - broken_gpus
    return int(min(there.get(name, 0) / amount for name, amount in _wanted(config).items()))


def _wanted(config: SearchConfig) -> dict[str, float]:
    """What one trial takes, by Ray's names."""
    wanted = bundles(config.resources).required_resources
    # Ray's own precision: a sum of parts may be a little more than the whole.
    return {name: round(amount, 4) for name, amount in wanted.items()}


def keep_secrets_out_of_ray() -> None:
    """Tune would copy AWS's keys from the driver into the trials' runtime environment, which Ray's
    dashboard and logs show. A node has keys of its own, or needs none."""
    kept = (name for name in class_cache.ENV_VARS_TO_PROPAGATE if not name.startswith("AWS_"))
    class_cache.ENV_VARS_TO_PROPAGATE = set(kept)


def bundles(resources: ResourcesConfig, one_node: bool = False) -> PlacementGroupFactory:
    """What a trial asks of Ray: of several GPUs one bundle each, and one for who drives them; on
    one node where they fit, or on no other."""
    each = {"CPU": resources.cpus, "GPU": resources.gpus}
    if resources.members > 1:
        each["GPU"] = 1
        # Taken from the first one: a machine with just the members' CPUs must hold the trial.
        driver = min(0.001, resources.cpus / 2)
        first = {**each, "CPU": resources.cpus - driver}
        rest = [each] * (resources.members - 1)
        return PlacementGroupFactory(
            [{"CPU": driver}, first, *rest], "STRICT_PACK" if one_node else "PACK"
        )
    return PlacementGroupFactory([{name: amount for name, amount in each.items() if amount}])
