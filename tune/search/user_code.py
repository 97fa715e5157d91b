"""Checks and prints which file of the user's own code a search will run, before it runs it."""

from __future__ import annotations

import sys
from pathlib import Path

from dpo_train.errors import InputError
from dpo_train.storage.files import checksum
from tune.config.schema import SearchConfig
from tune.run_folder.run_info import RunInfo
from tune.workers.user_evaluation import allowed_packages, file_of


def refuse_untrusted(config: SearchConfig) -> Path | None:
    """Return the file of `confirm.evaluate`, or None. Raises InputError if it may not be run."""
    if config.confirm is None or config.confirm.evaluate is None:
        return None
    return file_of(config.confirm.evaluate, Path.cwd(), allowed_packages())


def approve(config: SearchConfig, run: RunInfo) -> None:
    """Print which file will be run, and store its checksum in `run`.

    Raises InputError if the file has changed since the search began, unless `--allow-code` names
    its package.
    """
    file = refuse_untrusted(config)
    if file is None:
        return
    assert config.confirm is not None
    name = config.confirm.evaluate
    assert name is not None
    now, top = checksum(file), name.partition(":")[0].partition(".")[0]
    if run.evaluate_checksum not in (None, now) and top not in allowed_packages():
        raise InputError(
            f"confirm.evaluate: {file} has changed since the search began; check it, and then type "
            f"`--allow-code {top}` to run it as it is now"
        )
    run.evaluate_checksum = now
    print(f"{config.name}: confirm.evaluate will run {name} from {file}", file=sys.stderr)
