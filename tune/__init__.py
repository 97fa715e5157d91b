"""Searches DPO hyperparameters with Ray Tune, Optuna and ASHA.

The command line `dpo-tune` and this package do the same: run, resume, stop, clone, replay,
push, load_results.
"""

import os
from importlib import import_module
from typing import Any

# Each is read when its library is imported (W&B by TRL) or starts its processes, so they must stand
# here.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")

_PLACES = {
    "run": "tune.search.driver",
    "resume": "tune.search.driver",
    "replay": "tune.commands.replay",
    "push": "tune.publish.push",
    "stop": "tune.commands.stop_clone",
    "clone": "tune.commands.stop_clone",
    "Interrupted": "tune.errors",
    "load_results": "tune.run_folder.results",
    "load_search": "tune.config.load",
    "InputError": "dpo_train.errors",
}
__all__ = list(_PLACES)


def __dir__() -> list[str]:
    """For an interpreter that completes names: what this package offers."""
    return sorted([*globals(), *__all__])


def __getattr__(name: str) -> Any:
    """Imports on first use: `dpo-tune --help` must not wait for pydantic, numpy and Ray."""
    if name not in _PLACES:
        raise AttributeError(f"module 'tune' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
