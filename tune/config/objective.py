"""The objective of a search: one metric, or two and their Pareto front, and bounds on metrics.

It compares single reports; `tune/run_folder/winner_rule.py` decides which of many is the best.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, model_validator

from dpo_train.config_base import Part
from dpo_train.config_faults import one_of, shown
from dpo_train.scoring.metrics import SHARES, objectives
from tune.config.pareto import front_numbers

Report = dict[str, float]
"""A trial's numbers at one evaluation, by name."""


def _known(name: str) -> str:
    if name not in objectives():
        raise ValueError(one_of(name, list(objectives())))
    return name


def _one_or_two(value: Any) -> Any:
    names = list(value) if isinstance(value, list | tuple) else [value]
    for name in names:
        if name not in list(objectives()):
            raise ValueError(one_of(name, list(objectives())))
    if isinstance(value, str) or (len(names) == 2 and names[0] != names[1]):
        return value
    raise ValueError(
        f"must be one metric or two different ones, not {shown(value)}; type `eval/accuracy` or "
        "`[eval/accuracy, eval/drift]`"
    )


MetricName = Annotated[str, AfterValidator(_known)]
OneOrTwoMetrics = Annotated[str | tuple[str, str], BeforeValidator(_one_or_two)]


class Bound(Part):
    """A bound on a metric of the winner: one end, or both."""

    at_most: float | None = None
    """The largest value that may win. By default there is no upper bound."""
    at_least: float | None = None
    """The smallest value that may win. By default there is no lower bound."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        low, high = self.at_least, self.at_most
        if low is None and high is None:
            raise ValueError(
                "a bound needs at_most or at_least; type `{at_most: 1.5}` or `{at_least: 0.8}`"
            )
        if low is not None and high is not None and low > high:
            raise ValueError(
                f"at_least {low:g} is above at_most {high:g}, so nothing could win; type "
                f"`{{at_least: {high:g}, at_most: {low:g}}}`"
            )
        return self

    def excess(self, value: float) -> float:
        """Return how far a value is beyond the bound; 0 or less if it keeps it, inf for NaN."""
        if not math.isfinite(value):
            return math.inf
        ends = [value - self.at_most] if self.at_most is not None else []
        return max([*ends, self.at_least - value] if self.at_least is not None else ends)

    @property
    def text(self) -> str:
        """The bound in words, for example `at most 1.5`."""
        ends = [("at least", self.at_least), ("at most", self.at_most)]
        return " and ".join(f"{word} {end:g}" for word, end in ends if end is not None)


class Objective(BaseModel):
    """One metric and which way is better, perhaps with a second objective and with bounds."""

    metric: str
    mode: str
    """`max` if larger is better, else `min`."""
    second: Objective | None = None
    """The second objective of a search with two."""
    bounds: dict[str, Bound] = {}
    """By metric, the bound that a report must keep to win."""

    @classmethod
    def of(
        cls, metrics: str | Sequence[str], bounds: Mapping[Any, Bound] | None = None
    ) -> Objective:
        """Make the objective of one metric's name, or of two."""
        metric, *rest = [metrics] if isinstance(metrics, str) else metrics
        second = cls.of(rest[0]) if rest else None
        mode = objectives()[metric]
        return cls(metric=metric, mode=mode, second=second, bounds=dict(bounds or {}))

    @property
    def parts(self) -> list[Objective]:
        """This objective, and the second one if there is one."""
        return [self, self.second] if self.second else [self]

    @property
    def is_share(self) -> bool:
        """Whether the metric is a share of pairs, so that many trials may have the same value."""
        return self.metric in SHARES

    @property
    def other_share(self) -> str:
        """The other metric that is a share of pairs."""
        return next(share for share in SHARES if share != self.metric)

    @property
    def other(self) -> Objective:
        """The objective shown beside this one: the second, or else the drift."""
        return self.second or _DRIFT

    @property
    def plane(self) -> Objective:
        """The two axes of the plot of all trials: both objectives, or else those of the paper."""
        return self if self.second else Objective.of(("eval/accuracy", "eval/drift"))

    @property
    def text(self) -> str:
        """The metrics in words, for example `eval/accuracy and eval/drift`."""
        return " and ".join(each.metric for each in self.parts)

    @property
    def bounds_text(self) -> str:
        """The bounds in words, for example `eval/drift at most 1.5`; empty without bounds."""
        return " and ".join(f"{metric} {bound.text}" for metric, bound in self.bounds.items())

    def excesses(self, report: Report) -> dict[str, float]:
        """Return how far a report is beyond each metric's bound; 0 or less if it keeps it."""
        return {
            metric: bound.excess(report.get(metric, math.nan))
            for metric, bound in self.bounds.items()
        }

    def allows(self, report: Report) -> bool:
        """Return whether a report may win: it has the metric, and keeps every bound."""
        return self._value(report) > -math.inf and all(
            excess <= 0 for excess in self.excesses(report).values()
        )

    def worth(self, report: Report) -> float:
        """Return the report's value, larger is better; -inf if the report may not win."""
        return self._value(report) if self.allows(report) else -math.inf

    def key(self, report: Report) -> tuple[float, float]:
        """Return the worth of a report in both objectives. If one is -inf both are: otherwise the
        other one alone could put the report on the front."""
        values = (self.worth(report), self.other._value(report))
        return (-math.inf, -math.inf) if -math.inf in values else values

    def front_numbers(self, reports: Sequence[Report]) -> list[int]:
        """Return each report's Pareto front, 0 for those that no other report dominates. With one
        objective all are on front 0."""
        if self.second is None:
            return [0] * len(reports)
        return front_numbers([self.key(report) for report in reports])

    def by_value(self, reports: Sequence[Report]) -> list[int]:
        """Return the reports' indices, best first: front by front, then by value, and of equal
        values the later report first. It is for reports without values of the held-out pairs."""
        fronts = self.front_numbers(reports)

        def sort_key(index: int) -> tuple[int, float, float]:
            report = reports[index]
            return fronts[index], -self.worth(report), -report.get("pairs_seen", 0)

        return sorted(range(len(reports)), key=sort_key)

    def _value(self, report: Report) -> float:
        value = report.get(self.metric, math.nan)
        value = value if self.mode == "max" else -value
        return value if math.isfinite(value) else -math.inf


_DRIFT = Objective.of("eval/drift")
