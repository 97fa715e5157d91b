"""Finds the best of very many trials by the rule of `winner_rule.py`, without comparing them all.

What the rule needs from a trial's best report is computed once. A query then compares only trials
that may be within one standard error of the largest value, those with the largest soft share first.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from dpo_train.scoring.metrics import Floats, share_right
from tune.config.objective import Objective, Report
from tune.config.pareto import on_front
from tune.run_folder.held_out import HeldOutFiles
from tune.run_folder.judge import Judge, TrialReport
from tune.run_folder.winner_rule import SATURATED, is_within_error, soft_shares

_COMPARED = 16
"""How many trials are compared pair by pair at once. The first contenders are mostly near."""
_READ_AT_ONCE = 1024
"""How many trials' held-out pairs are read at once."""

Rows = NDArray[np.intp]
"""Row numbers of the table, ascending unless stated otherwise."""


@dataclass(frozen=True)
class _Table:
    """Columns of shape (k,), with a row for each trial and some unused rows."""

    value: Floats
    """The objective, the larger the better; -inf if the trial may not win, and in unused rows."""
    first: Floats
    """The first of two objectives, as the fronts compare it."""
    second: Floats
    later: Floats
    """`pairs_seen`."""
    is_finalist: NDArray[np.bool_]
    """Whether the trial has ended and may become a finalist."""
    version: NDArray[np.intp]
    """Counts the changes of the trial's best report."""
    computed: NDArray[np.intp]
    """The version for which the next three columns were computed."""
    pairs: NDArray[np.intp]
    """The number of held-out pairs."""
    soft: Floats
    """The soft share."""
    other: Floats
    """The other share."""

    @classmethod
    def empty(cls, rows: int) -> _Table:
        """Returns a table of unused rows."""
        value, first, second = np.full((3, rows), -np.inf)
        later, soft, other = np.zeros((3, rows))
        version, computed, pairs = np.zeros((3, rows), np.intp)
        is_finalist = np.zeros(rows, bool)
        return cls(value, first, second, later, is_finalist, version, computed, pairs, soft, other)

    def twice_as_long(self) -> _Table:
        """Returns a copy with twice as many rows."""
        new = _Table.empty(2 * len(self.value))
        for column in fields(self):
            getattr(new, column.name)[: len(self.value)] = getattr(self, column.name)
        return new


@dataclass(frozen=True)
class _Largest:
    """The report with the largest value, with which the others are compared."""

    value: float
    right: Floats
    """Shape (N,): what each held-out pair adds to its share."""
    clusters: NDArray[np.intp]
    """Shape (N,): the number of each pair's prompt."""
    contenders: Rows
    """The trials that may be within one standard error of it."""
    soft: Floats
    """The soft shares of the contenders."""


class Leaders:
    """A table with the best report of each measured trial of a search."""

    def __init__(self, objective: Objective, held_out: HeldOutFiles, judge: Judge) -> None:
        self._objective = objective
        self._held_out = held_out
        self._judge = judge
        self._rows: dict[str, int] = {}
        self._reports: list[TrialReport] = []
        self._table = _Table.empty(64)

    def put(
        self, trial_id: str, report: Report, may_be_finalist: bool, is_excluded: bool = False
    ) -> None:
        """Stores a trial's best report and whether it may be a finalist, or may not win at all."""
        row = self._rows.setdefault(trial_id, len(self._rows))
        if row == len(self._table.value):
            self._table = self._table.twice_as_long()
        table = self._table
        table.is_finalist[row] = may_be_finalist
        if row == len(self._reports):
            self._reports.append((trial_id, report))
        elif self._reports[row][1] is report and not is_excluded:
            return
        self._reports[row] = (trial_id, report)
        table.value[row] = -np.inf if is_excluded else self._objective.worth(report)
        if self._objective.second is not None:
            table.first[row], table.second[row] = self._objective.key(report)
        table.later[row] = report.get("pairs_seen", 0)
        table.version[row] += 1

    def first(self, count: int, finalists: bool = False) -> list[str]:
        """Returns the ids of the best `count` trials that may win.

        With two objectives they are sorted front by front. With `finalists` only trials that have
        ended and may be finalists are chosen.
        """
        table = self._table
        may_win = table.value > -np.inf
        rows = np.flatnonzero(may_win & table.is_finalist if finalists else may_win)
        found: list[int] = []
        largest = self._largest(table, rows) if len(rows) else None
        while len(found) < count and len(rows):
            is_next = np.ones(len(rows), bool)
            if self._objective.second is not None:
                is_next = on_front(table.first[rows], table.second[rows])
            found += self._in_order(table, rows[is_next], count - len(found), largest)
            rows = rows[~is_next]
        return [self._reports[row][0] for row in found]

    def _in_order(
        self, table: _Table, front: Rows, count: int, largest: _Largest | None
    ) -> list[int]:
        """Returns the first rows of one front.

        Trials near the largest value come first, by their soft share; the others follow by value.
        """
        near: list[int] = []
        if largest is not None:
            rows, soft = largest.contenders, largest.soft
            if self._objective.second is not None:
                chosen = np.isin(rows, front)
                rows, soft = rows[chosen], soft[chosen]
            rows = rows[np.lexsort((-table.later[rows], -soft))]
            for start in range(0, len(rows), _COMPARED):
                chunk = rows[start : start + _COMPARED]
                near += chunk[self._is_near(table, chunk, largest)].tolist()
                if len(near) >= count:
                    return near[:count]
        others = np.setdiff1d(front, near)
        order = np.lexsort((-table.later[others], -table.value[others]))
        return [*near, *others[order].tolist()][:count]

    def _largest(self, table: _Table, rows: Rows) -> _Largest | None:
        """Returns the largest report and its contenders; None if values alone decide."""
        values = table.value[rows]
        value = float(values.max())
        most_behind = self._judge.most_behind(self._reports[rows[int(values.argmax())]])
        contenders = rows[values >= value - most_behind]
        if not most_behind:
            return None
        self._compute(table, contenders)
        pairs = table.pairs[contenders]
        if (pairs != pairs[0]).any():
            return None
        soft = table.soft[contenders]
        if value >= SATURATED:
            soft = soft + table.other[contenders]
        equals = np.flatnonzero(table.value[contenders] == value)
        best = equals[np.lexsort((-table.later[contenders[equals]], -soft[equals]))[0]]
        right = self._right(contenders[best : best + 1])
        return _Largest(value, right[0], self._held_out.clusters(int(pairs[0])), contenders, soft)

    def _is_near(self, table: _Table, rows: Rows, largest: _Largest) -> NDArray[np.bool_]:
        behind = largest.value - table.value[rows]
        return is_within_error(behind, largest.right - self._right(rows), largest.clusters)

    def _right(self, rows: Rows) -> Floats:
        reports = [self._reports[row] for row in rows]
        return share_right(self._margins(reports, self._objective.metric))

    def _margins(self, reports: list[TrialReport], metric: str) -> Floats:
        margins = self._judge.margins(reports, metric)
        if margins is None:  # this is another thread than the driver's, which has just put a report
            raise RuntimeError("a report changed while it was read")
        return margins

    def _compute(self, table: _Table, rows: Rows) -> None:
        """Computes the columns of the held-out pairs for rows whose version is new.

        Another thread, which prints the progress, runs this while the driver may `put` a report. So
        we note the version before we read the report, and store the result under that version.
        """
        rows = rows[table.computed[rows] != table.version[rows]]
        versions = table.version[rows]
        reports = [self._reports[row] for row in rows]
        pairs = np.array([self._judge.pairs(report) for report in reports], int)
        table.pairs[rows] = pairs
        for number in np.unique(pairs[pairs > 0]):
            chosen = np.flatnonzero(pairs == number)
            for start in range(0, len(chosen), _READ_AT_ONCE):
                chunk = chosen[start : start + _READ_AT_ONCE]
                own = [reports[index] for index in chunk]
                margins = self._margins(own, self._objective.metric)
                others = self._margins(own, self._objective.other_share)
                table.soft[rows[chunk]] = soft_shares(margins)
                table.other[rows[chunk]] = share_right(others).mean(axis=1)
        table.computed[rows] = versions
