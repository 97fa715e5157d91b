"""An axis of the search as figures draw it: its whole range as it was searched, whatever was tried.

Knows no Plotly; an axis's settings are named as Plotly's.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tune.config.space import Axis, to_optuna
from tune.run_folder.results import Results
from tune.run_folder.wording import value_text

Settings = Mapping[str, object]
"""Of an axis, as Plotly takes them."""

_MARGIN = 0.04
"""Of the range, at both ends, so that no point is cut."""
_MOST_TICKS = 8
_LONGEST = 14
"""Letters of a choice beside an axis; the pointer and the table show all of it."""


@dataclass(frozen=True)
class Tick:
    at: float
    """From 0 to 1."""
    text: str


@dataclass(frozen=True)
class Scale:
    path: str
    """As the YAML has it."""
    label: str
    """The last part of the path where that is enough; escaped, for Plotly reads tags in it."""
    low: float
    high: float
    is_log: bool = False
    is_whole: bool = False
    choices: tuple[Any, ...] = ()
    """As Optuna has them; empty for a range."""
    texts: tuple[str, ...] = ()
    """Of the choices, escaped."""

    def at(self, value: Any) -> float:
        """Where it lies, in the axis's own numbers; a choice by its place in the list."""
        return self.choices.index(to_optuna(value)) if self.choices else float(value)

    def unit(self, value: Any) -> float:
        """Where it lies between 0 and 1."""
        if self.choices:
            return (self.at(value) + 0.5) / len(self.choices)
        low, high, here = (self._straight(each) for each in (self.low, self.high, float(value)))
        return (here - low) / (high - low)

    def value(self, unit: float) -> float:
        """The number that lies at a place between 0 and 1."""
        low, high = self._straight(self.low), self._straight(self.high)
        straight = low + unit * (high - low)
        return 10**straight if self.is_log else straight

    def _straight(self, number: float) -> float:
        return math.log10(number) if self.is_log else number

    def ticks(self) -> list[Tick]:
        """The ends and the middle, or the choices."""
        if self.choices:
            step = math.ceil(len(self.choices) / _MOST_TICKS)
            places = range(0, len(self.choices), step)
            return [Tick((n + 0.5) / len(self.choices), self.texts[n]) for n in places]
        values = [self.low, self.value(0.5), self.high]
        if self.is_whole:
            values = sorted({round(value) for value in values})
        return [Tick(self.unit(value), value_text(value)) for value in values]

    def settings(self) -> Settings:
        """Of a Plotly axis that shows all of the range, and whole numbers where only they may
        be."""
        if self.choices:
            count = len(self.choices)
            return {
                "tickvals": list(range(count)),
                "ticktext": list(self.texts),
                "range": [-0.5, count - 0.5],
            }
        low, high = self._straight(self.low), self._straight(self.high)
        margin = _MARGIN * (high - low)
        ends = {"type": "log" if self.is_log else "linear", "range": [low - margin, high + margin]}
        if self.is_whole and self.is_log:
            return {**ends, "tickvals": _whole_of_a_logarithm(self.low, self.high)}
        if self.is_whole:
            return {**ends, **whole_ticks(high - low)}
        decades = high - low
        if self.is_log and decades >= 2:
            return {**ends, "dtick": math.ceil(decades / 4)}
        return {**ends, "nticks": 5}


def whole_ticks(span: float) -> Settings:
    """Ticks at whole numbers, at most about six of them."""
    power = 10 ** math.floor(math.log10(max(span / 5, 1)))
    step = next(each for each in (1, 2, 5, 10) if each * power >= span / 5 or each == 10)
    return {"tick0": 0, "dtick": max(1, step * power), "tickformat": ",d"}


def _whole_of_a_logarithm(low: float, high: float) -> list[int]:
    powers = [10**n for n in range(int(math.log10(high)) + 1)]
    spread = [step * power for power in powers for step in (1, 2, 5)]
    inside = [number for number in spread if low <= number <= high]
    step = math.ceil(len(inside) / 6)
    return inside[::step] if len(inside) > 1 else [int(low), int(high)]


def scales(results: Results) -> list[Scale]:
    """Of all axes, in the YAML's order; a value outside, which a person asked for, widens one."""
    space = {path: Axis.model_validate(axis) for path, axis in results.search["space"].items()}
    last = [path.rpartition(".")[2] for path in space]
    return [
        _scale(path, name if last.count(name) == 1 else path, axis, [
            trial.config[path] for trial in results.trials if path in trial.config
        ])
        for (path, axis), name in zip(space.items(), last, strict=True)
    ]  # fmt: skip


def _scale(path: str, label: str, axis: Axis, tried: Iterable[Any]) -> Scale:
    label = html.escape(label, quote=False)
    if axis.choice is not None:
        texts = {to_optuna(value): _short(value_text(value)) for value in [*axis.choice, *tried]}
        return Scale(
            path,
            label,
            low=0,
            high=len(texts) - 1,
            choices=tuple(texts),
            texts=tuple(texts.values()),
        )
    low, high = axis.bounds
    numbers = [low, high, *tried]
    return Scale(
        path, label, min(numbers), max(numbers), axis.kind.startswith("log"), axis.is_whole
    )


def _short(text: str) -> str:
    cut = text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
    return html.escape(cut, quote=False)
