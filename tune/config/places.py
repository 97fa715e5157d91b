"""The environment variables of a search, and the folder of runs if no YAML names one."""

from __future__ import annotations

import os

RUNS = "DPO_TUNE_RUNS"
"""The environment variable that names the folder of runs, instead of `runs`."""
ALLOWED_CODE = "DPO_TUNE_ALLOW_CODE"
"""The environment variable of the packages that `--allow-code` names, separated by commas."""


def runs_dir() -> str:
    """Return the folder of runs, a path or a URL: from the environment, or `runs`."""
    return os.environ.get(RUNS) or "runs"
