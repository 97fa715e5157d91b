"""Sorts the reports of a search by the rule of `winner_rule.py` and the stored values of pairs."""

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
    """Sorts reports by an objective and the values of their held-out pairs."""

    def __init__(self, objective: Objective, held_out: HeldOutFiles) -> None:
        self._objective = objective
        self._held_out = held_out

    def best_report(self, trial_id: str, curve: Sequence[Report]) -> Report:
        """Returns a trial's best report by the first objective; empty for an empty curve."""
        if not curve:
            return {}
        order = winner_rule.best_first(self.candidates([(trial_id, report) for report in curve]))
        return curve[int(order[0])]

    def best_first(self, reports: Sequence[TrialReport]) -> list[int]:
        """Returns the indices of reports, the best first; with two objectives front by front.

        Only the pairs of reports that may be within one standard error of the largest value are
        read. The others follow by their values, which needs no pairs.
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
        """Returns the largest distance within one standard error of the largest report.

        0 if values alone decide.
        """
        pairs = self.pairs(largest) if self._objective.is_share else 0
        return winner_rule.most_behind(self._held_out.clusters(pairs)) if pairs else 0.0

    def near_best(self, reports: Sequence[TrialReport]) -> list[bool]:
        """Returns which reports may still be the best once more reports are compared."""
        if not reports:
            return []
        near: list[bool] = winner_rule.is_near(self.candidates(reports)).tolist()
        return near

    def candidates(self, reports: Sequence[TrialReport]) -> Candidates:
        """Returns the reports as candidates for the rule.

        If a report has no values of pairs, as in earlier versions, or another number of pairs than
        the rest, the candidates have values only.
        """
        values, pairs_seen = self._numbers(reports)
        is_share = self._objective.is_share
        margins = self.margins(reports, self._objective.metric) if is_share else None
        if margins is None:
            return Candidates(values, pairs_seen)
        clusters = self._held_out.clusters(margins.shape[1])
        others = self.margins(reports, self._objective.other_share)
        return Candidates.of_margins(values, pairs_seen, margins, clusters, others)

    def margins(self, reports: Sequence[TrialReport], metric: str) -> Floats | None:
        """Returns the margins behind a metric, shape (k, N); None if they can't be compared."""
        kept = [self._kept(report) for report in reports]
        margins = [each.margins(metric) for each in kept if each is not None]
        is_complete = len(margins) == len(kept) and len({len(each) for each in margins}) == 1
        return np.stack(margins) if is_complete else None

    def pairs(self, report: TrialReport) -> int:
        """Returns how many held-out pairs have stored values for a report."""
        kept = self._kept(report)
        return 0 if kept is None else len(kept.chosen)

    def _kept(self, report: TrialReport) -> HeldOut | None:
        return self._held_out.of(report[0]).get(int(report[1]["pairs_seen"]))

    def _numbers(self, reports: Sequence[TrialReport]) -> tuple[Floats, Floats]:
        """Returns the objective, the larger the better, and the pairs seen, each of shape (k,)."""
        values = np.array([self._objective.worth(report) for _, report in reports])
        return values, np.array([report["pairs_seen"] for _, report in reports])
