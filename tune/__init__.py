"""Searches DPO hyperparameters with Ray Tune, Optuna and ASHA.

The package offers in Python what the command line `dpo-tune` does: run, resume, stop, clone,
replay, push, load_results.
"""

import os
from importlib import import_module
from typing import Any

# W&B (which TRL imports) and Ray read these when they are imported or start processes, so we set
# them before anything else of this package is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")

_MODULES = {
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
__all__ = list(_MODULES)


def __dir__() -> list[str]:
    """Return the names of this package, so that an interpreter can complete them."""
    return sorted([*globals(), *__all__])


def __getattr__(name: str) -> Any:
    """Import on first use, so that `dpo-tune --help` does not wait for pydantic, numpy and Ray."""
    if name not in _MODULES:
        raise AttributeError(f"module 'tune' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
