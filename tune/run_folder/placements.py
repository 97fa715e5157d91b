"""`places.jsonl` in the run folder: which trial held which GPU of which node, and when."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from dpo_train.storage import mirror
from tune.run_folder.paths import RunFolder


@dataclass(frozen=True)
class Place:
    """Where a trial trains."""

    node: str
    """Its address."""
    gpus: str
    """As the process sees them."""
    pid: int


class Placements:
    """`places.jsonl` in the run folder: which trial took which place, and when.

    One line each time: `at` (Unix time), `trial`, and the fields of its Place. A trial holds its
    place until its next line or its end.
    """

    def __init__(self, run: RunFolder) -> None:
        self._file = run.placements
        self._last: dict[str, Place] = {}

    def note(self, trial: str, place: Place, at: float) -> None:
        if self._last.get(trial) != place:
            self._last[trial] = place
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"at": at, "trial": trial, **asdict(place)}) + "\n")
            mirror.put_later(self._file)
