"""Puts the reports of a search in order: the rule of `winner_rule.py` on what is kept of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dpo_train.scoring.metrics import Floats
from tune.config.objective import Objective, Report
from tune.run_folder import winner_rule
from tune.run_folder.held_out import HeldOut, HeldOutFiles
from tune.run_folder.winner_rule import Candidates

TrialReport = tuple[str, Report]
"""The id of a trial, and one of its reports."""


class Judge:
    def __init__(self, objective: Objective, held_out: HeldOutFiles) -> None:
        self._objective = objective
        self._held_out = held_out

    def best_report(self, trial_id: str, curve: Sequence[Report]) -> Report:
        """Of one trial, by the first objective even where there are two; empty of none."""
        if not curve:
            return {}
        order = winner_rule.best_first(self.candidates([(trial_id, report) for report in curve]))
        return curve[int(order[0])]

    def best_first(self, reports: Sequence[TrialReport]) -> list[int]:
        """The indices of reports; with two objectives front by front.

        Read is what the held-out pairs had at those alone that may be within one standard error of
        the largest value. The others follow by their values, which takes no pairs.
        """
        if not reports:
            return []
        values, later = self._numbers(reports)
        largest = int(values.argmax())
        may_be_near = values >= values[largest] - self.most_behind(reports[largest])
        contenders, others = np.flatnonzero(may_be_near), np.flatnonzero(~may_be_near)
        best = winner_rule.best_first(
            self.candidates([reports[index] for index in contenders.tolist()])
        )
        rest = winner_rule.best_first(Candidates(values[others], later[others]))
        order: list[int] = [*contenders[best].tolist(), *others[rest].tolist()]
        fronts = self._objective.front_numbers([report for _, report in reports])
        return sorted(order, key=fronts.__getitem__)

    def most_behind(self, largest: TrialReport) -> float:
        """How far below the report with the largest value another may lie and still be within one
        standard error of it; 0 where values alone decide."""
        pairs = self.pairs(largest) if self._objective.is_share else 0
        return winner_rule.most_behind(self._held_out.clusters(pairs)) if pairs else 0.0

    def near_best(self, reports: Sequence[TrialReport]) -> list[bool]:
        """Which of some reports may still be the best of them once there are more."""
        if not reports:
            return []
        near: list[bool] = winner_rule.is_near(self.candidates(reports)).tolist()
        return near

    def candidates(self, reports: Sequence[TrialReport]) -> Candidates:
        """As the rule takes them. Where one has no held-out pairs, or others than the rest, the
        values alone decide: earlier versions kept none."""
        values, pairs_seen = self._numbers(reports)
        is_share = self._objective.is_share
        margins = self.margins(reports, self._objective.metric) if is_share else None
        if margins is None:
            return Candidates(values, pairs_seen)
        clusters = self._held_out.clusters(margins.shape[1])
        others = self.margins(reports, self._objective.other_share)
        return Candidates.of_margins(values, pairs_seen, margins, clusters, others)

    def margins(self, reports: Sequence[TrialReport], metric: str) -> Floats | None:
        """Shape (k, N): of the metric's kind; None where they can't be compared."""
        kept = [self._kept(report) for report in reports]
        there = [each.margins(metric) for each in kept if each is not None]
        is_whole = len(there) == len(kept) and len({len(each) for each in there}) == 1
        return np.stack(there) if is_whole else None

    def pairs(self, report: TrialReport) -> int:
        """How many held-out pairs were kept of a report."""
        kept = self._kept(report)
        return 0 if kept is None else len(kept.chosen)

    def _kept(self, report: TrialReport) -> HeldOut | None:
        return self._held_out.of(report[0]).get(int(report[1]["pairs_seen"]))

    def _numbers(self, reports: Sequence[TrialReport]) -> tuple[Floats, Floats]:
        """The values of the objective, the larger the better, and the pairs seen; shape (k,)."""
        values = np.array([self._objective.worth(report) for _, report in reports])
        return values, np.array([report["pairs_seen"] for _, report in reports])
