"""The resources that a trial takes of a Ray cluster, and how many trials the cluster can hold."""

from __future__ import annotations

import os

import ray
from ray.tune import PlacementGroupFactory
from ray.tune.execution import class_cache

from dpo_train.errors import InputError
from tune.config.schema import ResourcesConfig, SearchConfig


def refuse_or_wait(config: SearchConfig) -> None:
    """Raise InputError if this machine has too little for a trial. A cluster may grow, so there
    only print that the search waits."""
    existing = ray.cluster_resources()
    for name, amount in _wanted(config).items():
        if amount <= existing.get(name, 0):
            continue
        field, has = f"resources.{name.lower()}s", f"{existing.get(name, 0):g}"
        if not os.environ.get("RAY_ADDRESS"):
            raise InputError(
                f"{field}: a trial wants {amount:g}, this machine has {has}; type "
                f"`--set {field}={has}`, or set RAY_ADDRESS to a larger cluster"
            )
        print(
            f"{field}: a trial wants {amount:g}, but the cluster has only {has}; waiting for more",
            flush=True,
        )


def trial_capacity(config: SearchConfig, broken_gpus: int = 0) -> int:
    """Return how many trials the cluster can hold at once now, without its broken GPUs.

    With `at_once` on a cluster this is always `at_once`: a cluster that can grow adds a node only
    if a trial waits for one.
    """
    at_once = config.resources.at_once
    if at_once and os.environ.get("RAY_ADDRESS"):
        return at_once
    existing = ray.cluster_resources()
    existing["GPU"] = existing.get("GPU", 0) - broken_gpus
    return int(min(existing.get(name, 0) / amount for name, amount in _wanted(config).items()))


def _wanted(config: SearchConfig) -> dict[str, float]:
    """Return what one trial takes, by Ray's names."""
    wanted = bundles(config.resources).required_resources
    # A sum of fractions may be slightly more than the whole, so we round as Ray does.
    return {name: round(amount, 4) for name, amount in wanted.items()}


def keep_secrets_out_of_ray() -> None:
    """Keep AWS keys out of the trials' runtime environment.

    Tune would copy them there from the driver, and Ray's dashboard and logs would show them. Nodes
    have their own keys, or need none.
    """
    kept = (name for name in class_cache.ENV_VARS_TO_PROPAGATE if not name.startswith("AWS_"))
    class_cache.ENV_VARS_TO_PROPAGATE = set(kept)


def bundles(resources: ResourcesConfig, one_node: bool = False) -> PlacementGroupFactory:
    """Return the resources that a trial requests from Ray.

    A trial with several GPUs has one bundle for each, and one for the process that drives them. Ray
    puts the bundles on one node if they fit, and with `one_node` never on more.
    """
    each = {"CPU": resources.cpus, "GPU": resources.gpus}
    if resources.members > 1:
        each["GPU"] = 1
        # A machine with just the members' CPUs must hold the trial, so the driving process gets a
        # little of the first member's share.
        driver = min(0.001, resources.cpus / 2)
        first = {**each, "CPU": resources.cpus - driver}
        rest = [each] * (resources.members - 1)
        return PlacementGroupFactory(
            [{"CPU": driver}, first, *rest], "STRICT_PACK" if one_node else "PACK"
        )
    return PlacementGroupFactory([{name: amount for name, amount in each.items() if amount}])
