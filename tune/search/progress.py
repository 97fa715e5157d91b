"""The words in which a running search is described: counts, the best, what its trials do."""

from __future__ import annotations

import time

from tune.config.objective import Objective
from tune.run_folder.records import ENDED, Records, TrialRecord
from tune.run_folder.wording import describe, duration
from tune.search.signs_of_life import SignsOfLife
from tune.workers.live_state import Snapshot

_TRIALS_SHOWN = 3


class Progress:
    """Says how a search stands. `total` trials are expected."""

    def __init__(self, records: Records, total: int, signs: SignsOfLife | None = None) -> None:
        self._records = records
        self._asked_for = total
        self._began = time.monotonic()
        self._ended_before = records.count(*ENDED)
        self._signs = signs or SignsOfLife()
        self.live = Snapshot()
        """What the trials did at the last look."""

    @property
    def _total(self) -> int:
        return self._asked_for + self._records.standings.clones

    def update(self) -> None:
        self._signs.update()

    def ended(self, record: TrialRecord) -> None:
        """Says how one trial ended."""
        self.say(self._trial_line(record))

    def say(self, line: str) -> None:
        self._signs.say(line)

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
        if doing := self.reference_line() or self._doing():
            parts.append(doing)
        return " · ".join(parts)

    def reference_line(self) -> str:
        """For example `reference log-probs 312 of 600 (1 min 40 s left)`; empty without a pass."""
        reference = self.live.reference
        if reference is None:
            return ""
        left = reference.seconds_left
        told = f" ({duration(left)} left)" if left is not None else ""
        return f"reference log-probs {reference.pairs_done} of {reference.pairs_total}{told}"

    def _doing(self) -> str:
        """For example `k3f-000 at 40 of 64 pairs, k3f-001 loading the model, 14 more`."""
        trials = sorted(self.live.trials.items())
        said = [
            f"{name} at {doing.pairs_done} of {doing.next_report} pairs"
            if doing.what == "training"
            else f"{name} {doing.what}"
            for name, doing in trials[:_TRIALS_SHOWN]
        ]
        if len(trials) > _TRIALS_SHOWN:
            said.append(f"{len(trials) - _TRIALS_SHOWN} more")
        return ", ".join(said)

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
