"""The axes of a search: parse them, turn them into Optuna's suggestions. Knows no Ray, and not
which fields there are (`searchable.py`)."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Collection, Mapping
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, model_validator

from dpo_train.config_base import Part
from dpo_train.config_faults import shown
from dpo_train.config_fields import Allowed, few, spelled
from dpo_train.errors import InputError

if TYPE_CHECKING:
    import optuna

NOT_NULL = "not null"
_SCALARS = (type(None), bool, int, float, str)
_KINDS = ("log_uniform", "uniform", "log_int", "int", "choice")

Point = dict[str, Any]
"""Values of the active axes, by dotted path."""
PointKey = frozenset[tuple[str, Any]]
"""What identifies a point: two points are the same if their keys are equal."""


_REALS = Allowed("two numbers, [low, high]")
_WHOLES = Allowed("two whole numbers, [low, high]")


class Axis(Part):
    """What one field of the trial's config may be; exactly one kind."""

    log_uniform: Annotated[tuple[float, float] | None, _REALS] = Field(
        None, examples=[[1e-6, 1e-4]]
    )
    """[low, high], drawn evenly in the logarithm."""
    uniform: Annotated[tuple[float, float] | None, _REALS] = Field(None, examples=[[0.1, 0.5]])
    """[low, high], drawn evenly."""
    log_int: Annotated[tuple[int, int] | None, _WHOLES] = Field(None, examples=[[4, 64]])
    """[low, high], whole numbers, drawn evenly in the logarithm, both ends included."""
    int_: Annotated[tuple[int, int] | None, _WHOLES] = Field(None, alias="int", examples=[[1, 5]])
    """[low, high], whole numbers, both ends included."""
    choice: Annotated[list[Any] | None, Allowed("a list of at least one value")] = Field(
        None, min_length=1, examples=[[4, 8, 16]]
    )
    """A list of values."""
    when: dict[str, object] = {}
    """Other axes and the value, the list of values, or `not null`, that they must have."""

    @property
    def kind(self) -> str:
        return next(kind for kind in _KINDS if self._values(kind) is not None)

    def _values(self, kind: str) -> Any:
        return getattr(self, "int_" if kind == "int" else kind)

    @property
    def is_whole(self) -> bool:
        """Whether all values are whole numbers between two bounds."""
        return self.kind in ("int", "log_int")

    @property
    def bounds(self) -> tuple[Any, Any]:
        low, high = self._values(self.kind)
        return low, high

    @property
    def corners(self) -> list[Any]:
        """Values that must be valid for all of the axis to be."""
        return list(self.choice) if self.choice is not None else list(self.bounds)

    @model_validator(mode="before")
    @classmethod
    def _ask_what_is_meant(cls, content: Any) -> Any:
        """Answers for a list, which may be a choice or a range, and for a value alone."""
        if isinstance(content, Axis | dict):
            return content
        if isinstance(content, list) and content:
            numbers = [each for each in content if _is_number(each)]
            if len(content) != 2 or numbers != content or content[0] == content[1]:
                raise ValueError(f"a list is no axis; type `{{choice: {spelled(content)}}}`")
            ends = sorted(numbers)
            kind = "log_uniform" if ends[0] > 0 and ends[1] >= 10 * ends[0] else "uniform"
            if all(isinstance(each, int) for each in ends):
                kind = "int"
            raise ValueError(
                f"{spelled(content)} may be a choice of two or a range; type "
                f"`{{choice: {spelled(content)}}}` or `{{{kind}: {spelled(ends)}}}`"
            )
        raise ValueError(
            f"{shown(content)} is no axis; give what is searched, like `{{choice: [a, b]}}` or "
            "`{uniform: [0.1, 0.5]}`; one value for all trials stands outside of space"
        )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        given = [kind for kind in _KINDS if self._values(kind) is not None]
        if len(given) != 1:
            here = f"here are {' and '.join(given)}" if given else "here is none"
            raise ValueError(f"an axis has exactly one of {', '.join(_KINDS)}; {here}")
        if self.choice is None:
            low, high = self.bounds
            if not low < high:
                raise ValueError(f"[low, high] with low below high, not [{low}, {high}]")
            if self.kind.startswith("log") and low <= 0:
                raise ValueError(f"a logarithm needs low above 0, not {low}")
        return self

    def contains(self, value: Any) -> bool:
        if self.choice is not None:
            return _same(value, self.choice)
        if not _is_number(value):
            return False
        if self.is_whole and value != int(value):
            return False
        low, high = self.bounds
        return bool(low <= value <= high)

    def describe(self) -> str:
        if self.choice is not None:
            return f"one of {self.choice}"
        low, high = self.bounds
        return f"{self.kind} {low:g} to {high:g}"

    def random_values(self, most: int, draw: random.Random) -> list[Any]:
        """Different values in random order: of a choice all of them, of whole numbers at most so
        many, of a range of reals a single one."""
        if self.choice is not None:
            return draw.sample(self.choice, len(self.choice))
        low, high = self.bounds
        if self.is_whole:
            numbers = range(low, high + 1)
            return draw.sample(numbers, min(most, len(numbers)))
        if self.kind == "log_uniform":
            value = math.exp(draw.uniform(math.log(low), math.log(high)))
            return [min(max(value, low), high)]
        return [draw.uniform(low, high)]

    def distribution(self) -> optuna.distributions.BaseDistribution:
        from optuna.distributions import (  # slow to import
            CategoricalDistribution,
            FloatDistribution,
            IntDistribution,
        )

        if self.choice is not None:
            return CategoricalDistribution([to_optuna(value) for value in self.choice])
        low, high = self.bounds
        if self.is_whole:
            return IntDistribution(low, high, log=self.kind == "log_int")
        return FloatDistribution(low, high, log=self.kind == "log_uniform")

    def from_optuna(self, value: Any) -> Any:
        """The config's value for Optuna's, which knows only scalars as choices."""
        if self.choice is None:
            return value
        return next(choice for choice in self.choice if _identical(to_optuna(choice), value))


Space = Mapping[str, Axis]


def to_optuna(value: Any) -> Any:
    return value if isinstance(value, _SCALARS) else json.dumps(value, sort_keys=True)


def is_active(axis: Axis, point: Point) -> bool:
    return all(
        other in point and holds(point[other], wanted) for other, wanted in axis.when.items()
    )


def suggest(trial: optuna.Trial, space: Space) -> Point:
    """Asks an Optuna trial for every axis that is active."""
    point: Point = {}
    for path, axis in space.items():
        if not is_active(axis, point):
            continue
        if axis.choice is not None:
            options = [to_optuna(value) for value in axis.choice]
            point[path] = axis.from_optuna(trial.suggest_categorical(path, options))
        elif axis.is_whole:
            point[path] = trial.suggest_int(path, *axis.bounds, log=axis.kind == "log_int")
        else:
            log = axis.kind == "log_uniform"
            point[path] = trial.suggest_float(path, *axis.bounds, log=log)
    return point


def check_point(point: Point, space: Space) -> None:
    """Raises InputError for a point outside the space; axes left out are drawn."""
    for path, value in point.items():
        if path not in space:
            raise InputError(f"points: {path!r} is no axis; axes: {few(list(space)) or 'none'}")
        if not space[path].contains(value):
            raise InputError(
                f"points: {path} = {value!r} lies outside the space ({space[path].describe()}); "
                "change the point or widen the axis"
            )
        missing = [other for other in space[path].when if other not in point]
        if not missing and not is_active(space[path], point):
            raise InputError(f"points: {path} has no meaning here; its `when` is not fulfilled")


def grid(space: Space) -> list[Point]:
    """All points, in the order of the axes. Raises InputError for an axis that has no list."""
    for path, axis in space.items():
        if axis.choice is None and not axis.is_whole:
            raise InputError(
                f"space: {path} is {axis.kind}; a grid needs choice or int on all axes"
            )
    values = [
        list(axis.choice) if axis.choice is not None else list(range(low, high + 1))
        for axis in space.values()
        for low, high in [axis.bounds if axis.choice is None else (0, 0)]
    ]
    points: dict[PointKey, Point] = {}
    for combination in product(*values):
        point: Point = {}
        for (path, axis), value in zip(space.items(), combination, strict=True):
            if is_active(axis, point):
                point[path] = value
        points.setdefault(point_key(point), point)
    return list(points.values())


def point_key(point: Point) -> PointKey:
    return frozenset((path, to_optuna(value)) for path, value in point.items())


def untried_point(space: Space, tried: Collection[PointKey], draw: random.Random) -> Point | None:
    """A random point that is not among those tried; None if the space has none left.

    It goes down the tree of axes and back from every point that was tried, of which there are few:
    so it ends soon, however many points the space has.
    """

    def complete(point: Point, axes: list[tuple[str, Axis]]) -> Point | None:
        if not axes:
            return None if point_key(point) in tried else point
        (path, axis), *rest = axes
        if not is_active(axis, point):
            return complete(point, rest)
        # Of so many values at least one has no tried point below it.
        for value in axis.random_values(len(tried) + 1, draw):
            found = complete({**point, path: value}, rest)
            if found is not None:
                return found
        return None

    return complete({}, list(space.items()))


def holds(value: Any, wanted: Any) -> bool:
    """Whether a value is what `when` wants: a value, one of a list, or anything but null."""
    if wanted == NOT_NULL:
        return value is not None
    return _same(value, wanted) if isinstance(wanted, list) else _identical(value, wanted)


def _same(value: Any, among: list[Any]) -> bool:
    return any(_identical(value, other) for other in among)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _identical(left: Any, right: Any) -> bool:
    """1 equals 1.0, but True does not equal 1."""
    return bool(left == right) and isinstance(left, bool) == isinstance(right, bool)
