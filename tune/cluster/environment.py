"""Describes what a search ran on: versions and hardware, but no names of machines or people."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TypedDict

_PACKAGES = ("dpo-tune", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "ray",
             "optuna", "huggingface_hub", "wandb")  # fmt: skip
_ACCELERATOR = "accelerator_type:"


class Hardware(TypedDict):
    """The hardware, as `ray.cluster_resources` counts it."""

    CPU: float
    GPU: float
    kinds: list[str]
    """Kinds of GPUs."""


class Environment(TypedDict):
    """The environment of a search, as results.json has it."""

    python: str
    versions: dict[str, str]
    """Versions by package."""
    hardware: Hardware


def describe(resources: dict[str, float]) -> Environment:
    """Return the environment of this machine or cluster.

    The versions are those of this process; a search's workers have the same.
    """
    kinds = [name.removeprefix(_ACCELERATOR) for name in resources if name.startswith(_ACCELERATOR)]
    return {
        "python": platform.python_version(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
        "hardware": {
            "CPU": resources.get("CPU", 0),
            "GPU": resources.get("GPU", 0),
            "kinds": sorted(kinds),
        },
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
