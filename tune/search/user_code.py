"""Says which file of the user's own code a search will run, before it does."""

from __future__ import annotations

import sys
from pathlib import Path

from dpo_train.errors import InputError
from dpo_train.storage.files import checksum
from tune.config.schema import SearchConfig
from tune.run_folder.run_info import RunInfo
from tune.workers.user_evaluation import allowed_packages, file_of


def refuse_untrusted(config: SearchConfig) -> Path | None:
    """The file of `confirm.evaluate`, None without one. Raises InputError if it may not be run."""
    if config.confirm is None or config.confirm.evaluate is None:
        return None
    return file_of(config.confirm.evaluate, Path.cwd(), allowed_packages())


def approve(config: SearchConfig, run: RunInfo) -> None:
    """Prints which file will be run, and keeps its checksum in `run`. Raises InputError if it is
    not the file that the search began with, unless the command line allows it by name."""
    file = refuse_untrusted(config)
    if file is None:
        return
    assert config.confirm is not None
    name = config.confirm.evaluate
    assert name is not None
    now, top = checksum(file), name.partition(":")[0].partition(".")[0]
    if run.evaluate_checksum not in (None, now) and top not in allowed_packages():
        raise InputError(
            f"confirm.evaluate: {file} has changed since the search began; look at it, and type "
            f"`--allow-code {top}` to run it as it is now"
        )
    run.evaluate_checksum = now
    print(f"{config.name}: confirm.evaluate will run {name} of {file}", file=sys.stderr)
