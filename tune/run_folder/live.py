"""`live.json` in the run folder: what the trials of a running search do between two reports."""

from __future__ import annotations

import time

from pydantic import BaseModel, ValidationError

from dpo_train.storage import mirror
from dpo_train.storage.files import write_here
from tune.run_folder.paths import RunFolder
from tune.run_folder.wording import duration

STALE_SECONDS = 60.0


class LiveTrial(BaseModel):
    what: str
    pairs_done: int
    next_report: int
    since: float
    """Unix time."""

    def __str__(self) -> str:
        if self.next_report:
            return f"{self.what}, at {self.pairs_done} of {self.next_report} pairs"
        return self.what


class Live(BaseModel):
    """A driver writes it every few seconds."""

    at: float
    """Unix time of writing."""
    reference: str = ""
    """How far the reference pass is; empty if none is computed."""
    trials: dict[str, LiveTrial] = {}


def write_live(folder: RunFolder, live: Live) -> None:
    path, content = folder.live_json, live.model_dump_json(indent=1)
    write_here(path, content)
    mirror.put_later(path, content)


def read_live(folder: RunFolder) -> Live | None:
    """None if no driver is at work: it wrote nothing for a minute."""
    try:
        live = Live.model_validate_json(mirror.read_text(folder.live_json))
    except (OSError, ValidationError):
        return None
    return live if time.time() - live.at <= STALE_SECONDS else None


def describe_live(folder: RunFolder) -> list[str]:
    """What runs, how far each trial is and since when; one line each."""
    live = read_live(folder)
    if live is None:
        return []
    lines = [live.reference] if live.reference else []
    lines += [
        f"{name}: {trial}; since {duration(time.time() - trial.since)}"
        for name, trial in sorted(live.trials.items())
    ]
    return lines
