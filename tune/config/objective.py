"""What makes one report better than another: one metric, or two and their Pareto front, and what
bounds it must keep. Which report is the best of many says `tune/run_folder/winner_rule.py`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

from pydantic import BaseModel, model_validator

from dpo_train.config_base import Part
from dpo_train.scoring.metrics import SHARES, objectives
from tune.config.pareto import front_numbers

Report = dict[str, float]
"""A trial's numbers at one evaluation, by name."""


class Bound(Part):
    """What a metric must keep; both ends may be given."""

    at_most: float | None = None
    """The largest value that may win."""
    at_least: float | None = None
    """The smallest value that may win."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        low, high = self.at_least, self.at_most
        if low is None and high is None:
            raise ValueError("a bound has an end; type `{at_most: 1.5}` or `{at_least: 0.8}`")
        if low is not None and high is not None and low > high:
            raise ValueError(f"at_least {low:g} is above at_most {high:g}, so nothing may win")
        return self

    def excess(self, value: float) -> float:
        """How far a value lies beyond it: 0 or less within. Infinite for what is no number."""
        if not math.isfinite(value):
            return math.inf
        ends = [value - self.at_most] if self.at_most is not None else []
        return max([*ends, self.at_least - value] if self.at_least is not None else ends)

    @property
    def text(self) -> str:
        """For example `at most 1.5`."""
        ends = [("at least", self.at_least), ("at most", self.at_most)]
        return " and ".join(f"{word} {end:g}" for word, end in ends if end is not None)


class Objective(BaseModel):
    metric: str
    mode: str
    second: Objective | None = None
    """The other one of a search with two."""
    bounds: dict[str, Bound] = {}
    """By metric what a report must keep to win."""

    @classmethod
    def of(cls, asked: str | Sequence[str], bounds: Mapping[Any, Bound] | None = None) -> Objective:
        """Of a metric's name, or of two."""
        metric, *rest = [asked] if isinstance(asked, str) else asked
        second = cls.of(rest[0]) if rest else None
        mode = objectives()[metric]
        return cls(metric=metric, mode=mode, second=second, bounds=dict(bounds or {}))

    @property
    def parts(self) -> list[Objective]:
        """Itself, and the second if there is one."""
        return [self, self.second] if self.second else [self]

    @property
    def is_share(self) -> bool:
        """Whether it is a share of pairs, which many trials may have alike."""
        return self.metric in SHARES

    @property
    def other_share(self) -> str:
        """Of a share the other one."""
        return next(share for share in SHARES if share != self.metric)

    @property
    def other(self) -> Objective:
        """What is shown beside it: the second, or the drift."""
        return self.second or _DRIFT

    @property
    def plane(self) -> Objective:
        """The two between which trials are drawn: its own, or of one alone the paper's."""
        return self if self.second else Objective.of(("eval/accuracy", "eval/drift"))

    @property
    def text(self) -> str:
        """The metrics in words, for example `eval/accuracy and eval/drift`."""
        return " and ".join(each.metric for each in self.parts)

    @property
    def bounds_text(self) -> str:
        """For example `eval/drift at most 1.5`; empty without bounds."""
        return " and ".join(f"{metric} {bound.text}" for metric, bound in self.bounds.items())

    def excesses(self, report: Report) -> dict[str, float]:
        """By metric how far a report lies beyond its bound; 0 or less within."""
        return {
            metric: bound.excess(report.get(metric, math.nan))
            for metric, bound in self.bounds.items()
        }

    def allows(self, report: Report) -> bool:
        """Whether a report may win: it was measured, and is within every bound."""
        return self._value(report) > -math.inf and all(
            excess <= 0 for excess in self.excesses(report).values()
        )

    def worth(self, report: Report) -> float:
        """Larger is better; -inf for what may not win."""
        return self._value(report) if self.allows(report) else -math.inf

    def key(self, report: Report) -> tuple[float, float]:
        """The worth of a report in both objectives; both are -inf where one is, else the other
        alone could put it on the front."""
        values = (self.worth(report), self.other._value(report))
        return (-math.inf, -math.inf) if -math.inf in values else values

    def front_numbers(self, reports: Sequence[Report]) -> list[int]:
        """With two objectives the front on which each report lies: 0 where no other beats it in one
        without losing in the other; with one objective 0 for all."""
        if self.second is None:
            return [0] * len(reports)
        return front_numbers([self.key(report) for report in reports])

    def by_value(self, reports: Sequence[Report]) -> list[int]:
        """The indices, the best value first and the later of equals; with two objectives front by
        front. For what has no held-out pairs to go by."""
        fronts = self.front_numbers(reports)

        def place(index: int) -> tuple[int, float, float]:
            report = reports[index]
            return fronts[index], -self.worth(report), -report.get("pairs_seen", 0)

        return sorted(range(len(reports)), key=place)

    def _value(self, report: Report) -> float:
        value = report.get(self.metric, math.nan)
        value = value if self.mode == "max" else -value
        return value if math.isfinite(value) else -math.inf


_DRIFT = Objective.of("eval/drift")
