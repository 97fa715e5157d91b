"""Keeps counts and the best trials up to date as records are written.

With them the driver handles an event of one trial without reading the records of all others.
"""

from __future__ import annotations

import bisect
from collections import Counter
from typing import Protocol

from tune.config.objective import Objective, Report
from tune.config.space import Point, PointKey, point_key
from tune.run_folder.leaders import Leaders
from tune.run_folder.winner_rule import SATURATED


class _Record(Protocol):
    """The fields of a trial's record that are used here."""

    @property
    def id(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def has_ended(self) -> bool: ...
    @property
    def config(self) -> Point: ...
    @property
    def metrics(self) -> Report: ...
    @property
    def cloned_from(self) -> str | None: ...
    @property
    def confirms(self) -> str | None: ...
    @property
    def warm(self) -> bool: ...


class Standings:
    """Counts over all records of a search, and its best trials."""

    def __init__(self, objective: Objective, leaders: Leaders) -> None:
        self._objective = objective
        self.leaders = leaders
        """The best trials of the search."""
        self.states: Counter[str] = Counter()
        """How many trials are in each state."""
        self.open: dict[str, None] = {}
        """The ids of the trials that have not ended."""
        self.searched = 0
        """How many trials belong to the search, with clones and without confirmations."""
        self.clones = 0
        """How many trials users requested."""
        self.confirmations: list[str] = []
        """The ids of the finalists' runs with other seeds."""
        self._points: dict[PointKey, list[str]] = {}
        self._without_key: list[tuple[str, Point]] = []
        self.measured = 0
        """How many trials of the search have a report."""
        self.measured_and_ended = 0
        """How many of the measured trials have ended."""
        self._saturated = 0
        """How many of the measured and ended trials have a share near 1."""
        self._best = ""
        self._best_at = (-1, 0)
        self._order: dict[str, int] = {}
        self._endings: list[tuple[int, bool]] = []
        """Trials that ended in this driver session, by number, and whether each failed."""

    def put(self, before: _Record | None, record: _Record) -> None:
        """Takes a changed record; `before` is the record before the change, None for a new one."""
        if before is None:
            self._add(record)
        else:
            self.states[before.state] -= 1
            self._count(before, -1)
            if record.has_ended and not before.has_ended:
                bisect.insort(self._endings, (self._order[record.id], record.state == "failed"))
        self.states[record.state] += 1
        self._count(record, 1)
        if record.has_ended:
            self.open.pop(record.id, None)
        else:
            self.open[record.id] = None
        if record.confirms is None:
            is_excluded = self._objective.second is not None and record.state == "failed"
            may_be_finalist = record.has_ended and not record.warm
            self.leaders.put(record.id, record.metrics, may_be_finalist, is_excluded)

    def begin_driver_session(self) -> None:
        """Forgets earlier failures, since their cause may have been fixed."""
        self._endings.clear()

    @property
    def points(self) -> dict[PointKey, list[str]]:
        """The ids of the search's trials, by their point."""
        for trial_id, point in self._without_key:
            self._points.setdefault(point_key(point), []).append(trial_id)
        self._without_key.clear()
        return self._points

    def best(self) -> str:
        """Returns the id of the best trial of the search; empty while none may win.

        It is chosen again when a trial has ended, not at every report. Before the first trial has
        ended, it is chosen again for each newly measured trial.
        """
        ended = self.measured_and_ended
        now = (ended, self.measured if not ended else 0)
        if self._best_at != now:
            self._best = "".join(self.leaders.first(1))
            self._best_at = now
        return self._best

    @property
    def failures_in_a_row(self) -> int:
        """How many of this session's last ended trials failed one after another."""
        count = 0
        for _, is_failed in reversed(self._endings):
            if not is_failed:
                break
            count += 1
        return count

    @property
    def saturated_share(self) -> float:
        """The share of measured and ended trials whose objective is near 1, so it tells little."""
        return self._saturated / max(1, self.measured_and_ended)

    def _add(self, record: _Record) -> None:
        self._order[record.id] = len(self._order)
        if record.confirms is not None:
            self.confirmations.append(record.id)
            return
        self.searched += 1
        self.clones += record.cloned_from is not None
        self._without_key.append((record.id, record.config))

    def _count(self, record: _Record, sign: int) -> None:
        if record.confirms is not None or not record.metrics:
            return
        self.measured += sign
        if record.has_ended:
            self.measured_and_ended += sign
            is_saturated = record.metrics.get(self._objective.metric, 0) >= SATURATED
            self._saturated += sign * is_saturated
