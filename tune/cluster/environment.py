"""What a search ran on: versions and hardware, nothing that names a machine or a person."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_PACKAGES = ("dpo-tune", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "ray",
             "optuna", "huggingface_hub", "wandb")  # fmt: skip
_ACCELERATOR = "accelerator_type:"


def describe(resources: dict[str, float]) -> dict[str, Any]:
    """`python`, `versions`, and `hardware`: what `ray.cluster_resources` counts, kinds of GPU too.

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
