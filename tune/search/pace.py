"""Measures how fast the trials of this driver session train, and estimates the time left.

It counts pairs, not trials, so that a trial which is half done counts half.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

_LEAST_SHARE = 0.1
"""The share of one trial's pairs that must have been trained before the time left is estimated,
since the first steps are slow."""


@dataclass
class _Trial:
    """What is known of a trial in training."""

    total: int
    """Pairs that it trains on if nothing stops it."""
    done: int
    """Pairs that it has trained on."""
    began: float
    """When it was first seen training."""
    trained: int = 0
    """Pairs trained since then. Pairs repeated after its process died count again."""

    @property
    def share(self) -> float:
        """The share of its pairs that it has trained on."""
        return min(1.0, self.done / self.total)


class Pace:
    """Keeps track of how far each trial is, and how fast."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._began: float | None = None
        self._trained = 0
        self._trials: dict[str, _Trial] = {}
        self._totals: list[int] = []
        self._shares: list[float] = []
        """For each ended trial, the share of its pairs at which it ended."""

    def update(self, trial: str, pairs_done: int, pairs_total: int) -> None:
        """Take note of how far a trial is."""
        if trial not in self._trials:
            self.start(trial, pairs_done, pairs_total)
            return
        known = self._trials[trial]
        more = max(0, pairs_done - known.done)
        known.done, known.trained = pairs_done, known.trained + more
        self._trained += more

    def start(self, trial: str, pairs_done: int, pairs_total: int, seconds_ago: float = 0) -> None:
        """Take note of how far a trial was when it began to train here, unless that is known."""
        if trial not in self._trials:
            began = self._now() - seconds_ago
            self._began = began if self._began is None else min(self._began, began)
            self._trials[trial] = _Trial(pairs_total, pairs_done, began)

    def end(self, trial: str, pairs_seen: int) -> None:
        """Take note of where a trial ended, if it was ever seen training."""
        if trial in self._trials:
            self.update(trial, pairs_seen, 0)
            known = self._trials[trial]
            # Another thread reads the medians of these lists as soon as the trial is gone.
            self._totals.append(known.total)
            self._shares.append(known.share)
            del self._trials[trial]

    def pairs_per_second(self, trial: str) -> float | None:
        """Return how fast a trial trains, evaluations included; None if it has not trained yet."""
        known = self._trials.get(trial)
        if known is None or not known.trained:
            return None
        return known.trained / max(self._now() - known.began, 1e-9)

    def share_done(self, trial: str) -> float:
        """Return how far a trial is on its way to where it will probably end, from 0 to 1."""
        known = self._trials.get(trial)
        return known.share / self._probable_end(known) if known is not None else 0.0

    def total(self, trial: str) -> int:
        """Return how many pairs a trial in training has in all; 0 if it was not seen training."""
        return self._trials[trial].total if trial in self._trials else 0

    @property
    def training(self) -> set[str]:
        """The trials that were seen training and have not ended."""
        return set(self._trials)

    def seconds_left(self, unended: int) -> float | None:
        """Return how long the `unended` trials will take, future ones included; None while too
        little was trained to say.

        A trial is assumed to end at the mean share at which those trials ended that came further
        than it is now, or at its last pair if none did. The number of trials at once is assumed to
        stay, and at the end the slowest trial decides.
        """
        # --- how fast all trials train together ---
        totals = self._totals + [trial.total for trial in self._trials.values()]
        if self._began is None or self._trained < max(1, _LEAST_SHARE * fmean(totals)):
            return None
        together = self._trained / max(self._now() - self._began, 1e-9)

        # --- the pairs that running trials have left, and the time of the slowest ---
        known = list(self._trials.values())
        pairs, slowest = 0.0, 0.0
        for trial in known:
            left = trial.total * (self._probable_end(trial) - trial.share)
            pairs += left
            if trial.trained:
                alone = trial.trained / max(self._now() - trial.began, 1e-9)
                slowest = max(slowest, left / alone)

        # --- the pairs of trials that have not begun ---
        shares = self._shares + [self._probable_end(trial) for trial in known]
        pairs += max(0, unended - len(known)) * fmean(totals) * fmean(shares)
        return max(pairs / together, slowest)

    def _probable_end(self, trial: _Trial) -> float:
        """Return the share of its pairs at which a running trial will probably end."""
        further = [share for share in self._shares if share > trial.share]
        return fmean(further) if further else 1.0
