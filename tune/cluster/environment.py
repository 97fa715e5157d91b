"""What a search ran on: versions and hardware, nothing that names a machine or a person."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TypedDict

_PACKAGES = ("dpo-tune", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "ray",
             "optuna", "huggingface_hub", "wandb")  # fmt: skip
_ACCELERATOR = "accelerator_type:"


class Hardware(TypedDict):
    """What `ray.cluster_resources` counts."""

    CPU: float
    GPU: float
    kinds: list[str]
    """Of GPUs."""


class Environment(TypedDict):
    """As results.json has it."""

    python: str
    versions: dict[str, str]
    """By package."""
    hardware: Hardware


def describe(resources: dict[str, float]) -> Environment:
    """What this machine or cluster is.

    The versions are those of this process, which a search's workers share.
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
