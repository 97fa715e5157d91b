"""Says how figures draw an axis of the search: over its whole searched range, whatever was tried.

Does not import Plotly, but its settings have the names of Plotly's.
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
"""Settings of an axis for Plotly."""

_MARGIN = 0.04
"""Share of the range that is added at both ends, so that no point is cut."""
_MOST_TICKS = 8
_LONGEST = 14
"""The most letters of a choice beside an axis. The pointer and the table show the whole text."""


@dataclass(frozen=True)
class Tick:
    """A labelled position on an axis."""

    at: float
    """The position, from 0 to 1."""
    text: str


@dataclass(frozen=True)
class Scale:
    """The range, or the choices, of one axis."""

    path: str
    """The axis's dotted path in the YAML."""
    label: str
    """The last part of the path if that is unique, else the path. Escaped, since Plotly reads
    tags."""
    low: float
    high: float
    is_log: bool = False
    is_whole: bool = False
    choices: tuple[Any, ...] = ()
    """The choices as Optuna stores them; empty for a range."""
    texts: tuple[str, ...] = ()
    """The choices' texts, escaped."""

    def at(self, value: Any) -> float:
        """Returns the position of a value on the axis: its number, or the index of a choice."""
        return self.choices.index(to_optuna(value)) if self.choices else float(value)

    def unit(self, value: Any) -> float:
        """Returns the position of a value, between 0 and 1."""
        if self.choices:
            return (self.at(value) + 0.5) / len(self.choices)
        low, high, position = (self._linear(each) for each in (self.low, self.high, float(value)))
        return (position - low) / (high - low)

    def value(self, unit: float) -> float:
        """Returns the number at a position between 0 and 1."""
        low, high = self._linear(self.low), self._linear(self.high)
        position = low + unit * (high - low)
        return 10**position if self.is_log else position

    def _linear(self, number: float) -> float:
        return math.log10(number) if self.is_log else number

    def ticks(self) -> list[Tick]:
        """Returns ticks at both ends and the middle, or at the choices."""
        if self.choices:
            step = math.ceil(len(self.choices) / _MOST_TICKS)
            shown = range(0, len(self.choices), step)
            return [Tick((n + 0.5) / len(self.choices), self.texts[n]) for n in shown]
        values = [self.low, self.value(0.5), self.high]
        if self.is_whole:
            values = sorted({round(value) for value in values})
        return [Tick(self.unit(value), value_text(value)) for value in values]

    def settings(self) -> Settings:
        """Returns settings for a Plotly axis over the whole range; integers get whole ticks."""
        if self.choices:
            count = len(self.choices)
            return {
                "tickvals": list(range(count)),
                "ticktext": list(self.texts),
                "range": [-0.5, count - 0.5],
            }
        low, high = self._linear(self.low), self._linear(self.high)
        margin = _MARGIN * (high - low)
        ends = {"type": "log" if self.is_log else "linear", "range": [low - margin, high + margin]}
        if self.is_whole and self.is_log:
            return {**ends, "tickvals": _whole_log_ticks(self.low, self.high)}
        if self.is_whole:
            return {**ends, **whole_ticks(high - low)}
        decades = high - low
        if self.is_log and decades >= 2:
            return {**ends, "dtick": math.ceil(decades / 4)}
        return {**ends, "nticks": 5}


def whole_ticks(span: float) -> Settings:
    """Returns settings for about six ticks at most, all at whole numbers."""
    power = 10 ** math.floor(math.log10(max(span / 5, 1)))
    step = next(each for each in (1, 2, 5, 10) if each * power >= span / 5 or each == 10)
    return {"tick0": 0, "dtick": max(1, step * power), "tickformat": ",d"}


def _whole_log_ticks(low: float, high: float) -> list[int]:
    """Returns about six whole numbers at most, evenly spread on a logarithmic axis."""
    powers = [10**n for n in range(int(math.log10(high)) + 1)]
    spread = [step * power for power in powers for step in (1, 2, 5)]
    inside = [number for number in spread if low <= number <= high]
    step = math.ceil(len(inside) / 6)
    return inside[::step] if len(inside) > 1 else [int(low), int(high)]


def scales(results: Results) -> list[Scale]:
    """Returns the scales of all axes, in the YAML's order.

    A user may have requested a value outside of an axis, which widens the scale.
    """
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
