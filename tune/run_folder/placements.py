"""Writes `places.jsonl`: which trial held which GPU of which node, and when."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from dpo_train.storage import mirror
from tune.run_folder.paths import RunFolder


@dataclass(frozen=True)
class Placement:
    """The process in which a trial trains, and its GPUs."""

    node: str
    """The node's address."""
    gpus: str
    """The GPUs as CUDA_VISIBLE_DEVICES names them."""
    pid: int


class Placements:
    """The file `places.jsonl` in the run folder.

    It has one line for each new placement of a trial: `at` (Unix time), `trial`, and the fields of
    Placement. The placement lasts until the trial's next line or its end.
    """

    def __init__(self, run: RunFolder) -> None:
        self._file = run.placements
        self._last: dict[str, Placement] = {}

    def note(self, trial: str, placement: Placement, at: float) -> None:
        """Appends a line if the trial's placement has changed."""
        if self._last.get(trial) != placement:
            self._last[trial] = placement
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"at": at, "trial": trial, **asdict(placement)}) + "\n")
            mirror.put_later(self._file)
