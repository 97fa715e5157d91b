"""What makes one trial better than another: one metric, or two and their Pareto front."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

from pydantic import BaseModel

from dpo_train.scoring.metrics import MODES
from tune.config.pareto import front_numbers

Report = dict[str, float]
"""A trial's numbers at one evaluation, by name."""
T = TypeVar("T")


class Measured(Protocol):
    """What is ranked: a trial with its best report, which is empty before the first one."""

    @property
    def metrics(self) -> Report: ...


M = TypeVar("M", bound=Measured)


class Objective(BaseModel):
    metric: str
    mode: str
    second: Objective | None = None
    """The other one of a search with two."""

    @classmethod
    def of(cls, asked: str | Sequence[str]) -> Objective:
        """Of a metric's name, or of two."""
        metric, *rest = [asked] if isinstance(asked, str) else asked
        return cls(metric=metric, mode=MODES[metric], second=cls.of(rest[0]) if rest else None)

    @property
    def parts(self) -> list[Objective]:
        """Itself, and the second if there is one."""
        return [self, self.second] if self.second else [self]

    @property
    def other(self) -> Objective:
        """What decides between equals: the second, or the lower drift."""
        return self.second or _LEAST_DRIFT

    @property
    def plane(self) -> Objective:
        """The two between which trials are drawn: its own, or of one alone the paper's."""
        return self if self.second else Objective.of(("eval/accuracy", "eval/drift"))

    @property
    def told(self) -> str:
        """As a person reads it."""
        return " and ".join(each.metric for each in self.parts)

    def key(self, report: Report) -> tuple[float, float]:
        """Larger is better, also in each of the two values."""
        values = (self._worth(report), self.other._worth(report))
        if self.second and -math.inf in values:
            return -math.inf, -math.inf  # else the other alone could put it on the front
        return values

    def _worth(self, report: Report) -> float:
        value = report.get(self.metric, math.nan)
        value = value if self.mode == "max" else -value
        return value if math.isfinite(value) else -math.inf

    def ranked(self, items: Iterable[T], report: Callable[[T], Report]) -> list[T]:
        """The best first; with two objectives front by front, each from its best in the first."""
        best_first = sorted(items, key=lambda item: self.key(report(item)), reverse=True)
        if self.second is None:
            return best_first
        fronts = front_numbers([self.key(report(item)) for item in best_first])
        return [best_first[n] for n in sorted(range(len(fronts)), key=fronts.__getitem__)]

    def front(self, trials: Iterable[M]) -> list[M]:
        """With two objectives the measured trials that no other beats in one without losing in the
        other, from the best in the first on; each at its best report."""
        if self.second is None:
            return []
        measured = [trial for trial in trials if trial.metrics]
        numbers = front_numbers([self.key(trial.metrics) for trial in measured])
        front = [trial for trial, number in zip(measured, numbers, strict=True) if number == 0]
        return self.ranked(front, lambda trial: trial.metrics)

    def best(self, trials: Iterable[M]) -> M | None:
        """The best of those that were measured."""
        measured = [trial for trial in trials if trial.metrics]
        return max(measured, key=lambda trial: self.key(trial.metrics), default=None)


_LEAST_DRIFT = Objective.of("eval/drift")
