"""Downloads exported folders of a run at a URL to this node, for as long as they are read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from dpo_train.evaluation.test_report import TestFolders
from dpo_train.storage import mirror
from tune.run_folder.paths import RunFolder
from tune.run_folder.run_info import RunInfo
from tune.workers.tasks import TestTask


@contextlib.contextmanager
def pulled(folder: Path) -> Iterator[Path]:
    """Download an exported folder. A folder on this node's disk is used as it is."""
    try:
        yield mirror.pull(folder)
    finally:
        mirror.forget(folder)


@contextlib.contextmanager
def pulled_folders(run: RunFolder, info: RunInfo, task: TestTask) -> Iterator[TestFolders]:
    """Download all folders that the evaluation on the test split reads."""
    with contextlib.ExitStack() as stack:

        def brought(exported: str) -> Path:
            return stack.enter_context(pulled(run.absolute(exported)))

        searched = brought(task.searched) if task.searched else None
        sampled = {name: brought(exported) for name, exported in task.sampled.items()}
        winner = mirror.pull(run.winner)
        yield TestFolders(winner, info.prepared_folder, info.device, searched, sampled)
