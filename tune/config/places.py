"""Where run folders stand if no YAML says otherwise."""

from __future__ import annotations

import os

RUNS = "DPO_TUNE_RUNS"
"""Where run folders stand, for all processes of a cluster; in place of `runs`."""
ALLOWED_CODE = "DPO_TUNE_ALLOW_CODE"
"""The environment variable of packages that `--allow-code` names, with commas between them."""


def runs_dir() -> str:
    """A path or a URL, from the environment of this process."""
    return os.environ.get(RUNS) or "runs"
