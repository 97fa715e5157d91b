"""How fast the trials of this driver session train, and how long the others will take.

It counts pairs and not trials, so that trials which are half done count half.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

_LEAST_SHARE = 0.1
"""Of the pairs of one trial, which all together must have trained on: first steps are slow."""


@dataclass
class _Trial:
    """What is known of one trial that trains."""

    total: int
    """Pairs that it trains on if nothing stops it."""
    done: int
    began: float
    """When it was first seen to train."""
    trained: int = 0
    """Pairs since then. What a trial repeats after its process died counts again."""

    @property
    def share(self) -> float:
        return min(1.0, self.done / self.total)


class Pace:
    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._began: float | None = None
        self._trained = 0
        self._trials: dict[str, _Trial] = {}
        self._totals: list[int] = []
        self._shares: list[float] = []
        """What share of its pairs each trial had trained on when it ended."""

    def saw(self, trial: str, pairs_done: int, pairs_total: int) -> None:
        """Takes note of how far a trial is."""
        if trial not in self._trials:
            self.began(trial, pairs_done, pairs_total)
            return
        known = self._trials[trial]
        more = max(0, pairs_done - known.done)
        known.done, known.trained = pairs_done, known.trained + more
        self._trained += more

    def began(self, trial: str, pairs_done: int, pairs_total: int, seconds_ago: float = 0) -> None:
        """Takes note of where a trial stood when it began to train here, unless it is known."""
        if trial not in self._trials:
            began = self._now() - seconds_ago
            self._began = began if self._began is None else min(self._began, began)
            self._trials[trial] = _Trial(pairs_total, pairs_done, began)

    def ended(self, trial: str, pairs_seen: int) -> None:
        """Takes note of where a trial ended, if it was ever seen to train."""
        if trial in self._trials:
            self.saw(trial, pairs_seen, 0)
            known = self._trials.pop(trial)
            self._totals.append(known.total)
            self._shares.append(known.share)

    def pairs_per_second(self, trial: str) -> float | None:
        """How fast one trial trains, its evaluations included; None until it did."""
        known = self._trials.get(trial)
        if known is None or not known.trained:
            return None
        return known.trained / max(self._now() - known.began, 1e-9)

    def share_done(self, trial: str) -> float:
        """How far a trial is on its way to where it will probably end."""
        known = self._trials.get(trial)
        return known.share / self._end(known) if known is not None else 0.0

    def total(self, trial: str) -> int:
        """The pairs of a trial that trains; 0 if it was not seen to."""
        return self._trials[trial].total if trial in self._trials else 0

    @property
    def training(self) -> set[str]:
        """The trials that were seen to train and have not ended."""
        return set(self._trials)

    def seconds_left(self, unended: int) -> float | None:
        """How long the trials that have not ended will take, those to come among them; None while
        too little was trained to tell.

        A trial is taken to end where those ended that had come further than it is now, at its last
        pair if none had. As many as now train at once until the end, where the slowest decides.
        """
        totals = self._totals + [trial.total for trial in self._trials.values()]
        if self._began is None or self._trained < max(1, _LEAST_SHARE * fmean(totals)):
            return None
        together = self._trained / max(self._now() - self._began, 1e-9)
        known = list(self._trials.values())
        pairs, slowest = 0.0, 0.0
        for trial in known:
            left = trial.total * (self._end(trial) - trial.share)
            pairs += left
            if trial.trained:
                alone = trial.trained / max(self._now() - trial.began, 1e-9)
                slowest = max(slowest, left / alone)
        shares = self._shares + [self._end(trial) for trial in known]
        pairs += max(0, unended - len(known)) * fmean(totals) * fmean(shares)
        return max(pairs / together, slowest)

    def _end(self, trial: _Trial) -> float:
        """The share of its pairs at which a running trial will probably end."""
        further = [share for share in self._shares if share > trial.share]
        return fmean(further) if further else 1.0
