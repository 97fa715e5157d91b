"""Reads and writes `live.json`: what the trials of a running search do between two reports."""

from __future__ import annotations

import time

from pydantic import BaseModel, ValidationError

from dpo_train.storage import mirror
from dpo_train.storage.files import write_here
from tune.run_folder.paths import RunFolder
from tune.run_folder.wording import duration

STALE_SECONDS = 60.0
"""An older `live.json` means that no driver runs."""


class LiveTrial(BaseModel):
    """What one trial does now."""

    what: str
    """Like `trains`."""
    pairs_done: int
    next_report: int
    """The pairs_seen of the next report; 0 if it is not known."""
    since: float
    """Unix time of its start."""

    def __str__(self) -> str:
        if self.next_report:
            return f"{self.what}, at {self.pairs_done} of {self.next_report} pairs"
        return self.what


class Live(BaseModel):
    """The content of `live.json`, which the driver writes every few seconds."""

    at: float
    """Unix time of writing."""
    reference: str = ""
    """The progress of the reference pass; empty if none runs."""
    trials: dict[str, LiveTrial] = {}
    """What each running trial does, by its id."""


def write_live(folder: RunFolder, live: Live) -> None:
    """Writes `live.json`."""
    path, content = folder.live_json, live.model_dump_json(indent=1)
    write_here(path, content)
    mirror.put_later(path, content)


def read_live(folder: RunFolder) -> Live | None:
    """Returns what the trials do; None if no driver runs, which is known after STALE_SECONDS."""
    try:
        live = Live.model_validate_json(mirror.read_text(folder.live_json))
    except (OSError, ValidationError):
        return None
    return live if time.time() - live.at <= STALE_SECONDS else None


def describe_live(folder: RunFolder) -> list[str]:
    """Returns one line for each running trial: what it does, how far it is, and since when."""
    live = read_live(folder)
    if live is None:
        return []
    lines = [live.reference] if live.reference else []
    lines += [
        f"{name}: {trial}; since {duration(time.time() - trial.since)}"
        for name, trial in sorted(live.trials.items())
    ]
    return lines
