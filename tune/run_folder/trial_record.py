"""The record of one trial, and how records are read from a run folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, get_args

from tune.config.objective import Report
from tune.config.space import Point
from tune.run_folder.damaged import DamagedFile
from tune.run_folder.document import Document, Name
from tune.run_folder.paths import RunFolder

State = Literal["finished", "stopped", "failed", "running", "pending", "interrupted"]
STATES: tuple[State, ...] = get_args(State)
ENDED = STATES[:3]
"""Trials in these states are over; the others may continue. `interrupted` is never written: a
reader shows open trials so if no driver runs the search."""


class TrialRecord(Document):
    """The record of one trial: its point, its reports, its state."""

    id: Name
    state: State = "pending"
    config: Point
    """The values of the active axes, by dotted path."""
    metrics: Report = {}
    """The best report by `winner_rule.py`; with two objectives by the first one."""
    curve: list[Report] = []
    """All reports, in the order of pairs_seen."""
    error: str | None = None
    began: float | None = None
    """Unix time at which a worker first took the trial."""
    ended: float | None = None
    """Unix time of its end."""
    seconds: float = 0.0
    """Time for which it held its resources, over all driver sessions."""
    cloned_from: Name | None = None
    """The trial from whose point a user requested a changed copy."""
    request: Name | None = None
    """The folder in the run's `requests/` that requested this clone."""
    warm: bool = False
    """Whether an earlier version started it from the exported weights of `cloned_from`. If so,
    training its configuration again does not give its numbers."""
    confirms: Name | None = None
    """The trial whose configuration this run trains again, with another seed."""
    micro_batch: int | None = None
    """How many pairs went through the model at once, if fewer than a batch."""
    reference_pairs: int = 0
    """Pairs whose reference log-probs this trial's process computed before it began."""

    @property
    def has_ended(self) -> bool:
        """Whether the trial is over."""
        return self.state in ENDED

    @property
    def pairs_seen(self) -> int:
        """The pairs_seen of the last report; 0 before the first one."""
        return int(self.curve[-1]["pairs_seen"]) if self.curve else 0

    @property
    def pairs_at_best_report(self) -> int | None:
        """The pairs_seen of the best report; None if nothing was measured."""
        return int(self.metrics["pairs_seen"]) if "pairs_seen" in self.metrics else None


def read_records(
    folder: RunFolder, on_damaged: Callable[[DamagedFile], None]
) -> Iterator[TrialRecord]:
    """Yields the trial records of a run folder, in the order of their numbers.

    Calls `on_damaged` for each record that can't be read.
    """
    paths = folder.trials.glob("*.json")
    for path in sorted(paths, key=lambda path: (len(path.stem), path.stem)):
        try:
            record = TrialRecord.model_validate_json(path.read_bytes())
            if record.id != path.stem:
                raise ValueError(f"it says that it is {record.id!r}")
        except (OSError, ValueError) as error:
            on_damaged(DamagedFile(path, error))
            continue
        yield record
