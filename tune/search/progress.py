"""What a person sees while a search runs: one live line on a terminal, else a line per trial."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO

from tune.config.objective import Objective
from tune.run_folder.records import ENDED, Records, TrialRecord
from tune.run_folder.wording import describe, duration


class Progress:
    """Prints how a search stands. `total` trials are expected."""

    def __init__(self, records: Records, total: int) -> None:
        self._records = records
        self._asked_for = total
        self._began = time.monotonic()
        self._ended_before = records.count(*ENDED)
        self._drawn = 0.0

    @property
    def _total(self) -> int:
        return self._asked_for + self._records.clones

    @property
    def _stream(self) -> TextIO:
        # Looked up each time: Tune pickles what it is given, and a notebook's stdout can't be.
        return sys.stdout

    def update(self) -> None:
        """Draws the live line again, at most five times a second."""
        if self._stream.isatty() and time.monotonic() - self._drawn > 0.2:
            self._drawn = time.monotonic()
            width = shutil.get_terminal_size().columns - 1
            self._stream.write("\r\033[K" + self.line()[:width])
            self._stream.flush()

    def ended(self, record: TrialRecord) -> None:
        """Says how one trial ended."""
        self.say(self._trial_line(record))

    def say(self, line: str) -> None:
        """Writes a line above the live one."""
        if self._stream.isatty():
            self._stream.write("\r\033[K")
        self._stream.write(line + "\n")
        self._stream.flush()
        self.update()

    def close(self) -> None:
        if self._stream.isatty():
            self._stream.write("\r\033[K")

    def line(self) -> str:
        """For example `12/24 trials · 2 running · 7 stopped · best eval/accuracy 0.950`."""
        count = self._records.count
        ended = count(*ENDED)
        parts = [
            f"{ended}/{self._total} trials",
            f"{count('running')} running",
            f"{count('stopped')} stopped",
            f"{count('finished')} finished",
        ]
        if failed := count("failed"):
            parts.append(f"{failed} failed")
        if best := self._records.best():
            parts.append(f"best {_values(self._records.objective, best)} ({best.id})")
        done_here = ended - self._ended_before
        if done_here and ended < self._total:
            left = (time.monotonic() - self._began) / done_here * (self._total - ended)
            parts.append(f"about {duration(left)} left")
        return " · ".join(parts)

    def _trial_line(self, record: TrialRecord) -> str:
        again = f"  {record.confirms} again" if record.confirms else ""
        value = _values(self._records.objective, record) if record.metrics else record.error or ""
        return (
            f"{record.id} {record.state:8} {record.pairs_seen:>6} pairs  {value}  "
            f"{describe(record.config)}{again}"
        )


def _values(objective: Objective, record: TrialRecord) -> str:
    """Of a trial's best report, by name."""
    return " ".join(f"{p.metric} {record.metrics[p.metric]:.3f}" for p in objective.parts)
