"""The axes of a search: parses them, and turns them into Optuna's suggestions.

It knows neither Ray nor the fields of a trial (`searchable.py` does).
"""

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
"""The identity of a point: two points are the same if their keys are equal."""


_REALS = Allowed("two numbers, [low, high]")
_WHOLES = Allowed("two whole numbers, [low, high]")


class Axis(Part):
    """The values that one field of a trial may have. An axis has exactly one kind."""

    log_uniform: Annotated[tuple[float, float] | None, _REALS] = Field(
        None, examples=[[1e-6, 1e-4]]
    )
    """Real numbers from low to high, drawn evenly on a logarithmic scale."""
    uniform: Annotated[tuple[float, float] | None, _REALS] = Field(None, examples=[[0.1, 0.5]])
    """Real numbers from low to high, drawn evenly."""
    log_int: Annotated[tuple[int, int] | None, _WHOLES] = Field(None, examples=[[4, 64]])
    """Whole numbers from low to high, both included, drawn evenly on a logarithmic scale."""
    int_: Annotated[tuple[int, int] | None, _WHOLES] = Field(None, alias="int", examples=[[1, 5]])
    """Whole numbers from low to high, both included, drawn evenly."""
    choice: Annotated[list[Any] | None, Allowed("a list of at least one value")] = Field(
        None, min_length=1, examples=[[4, 8, 16]]
    )
    """A list of values to choose from."""
    when: dict[str, object] = {}
    """The axis is drawn only if other axes have these values: by path a value, a list of values,
    or `not null`."""

    @property
    def kind(self) -> str:
        """The name of the axis's kind, for example `uniform`."""
        return next(kind for kind in _KINDS if self._values(kind) is not None)

    def _values(self, kind: str) -> Any:
        return getattr(self, "int_" if kind == "int" else kind)

    @property
    def is_whole(self) -> bool:
        """Whether all values are whole numbers between two bounds."""
        return self.kind in ("int", "log_int")

    @property
    def bounds(self) -> tuple[Any, Any]:
        """The lowest and the highest value of an axis that is not a choice."""
        low, high = self._values(self.kind)
        return low, high

    @property
    def corners(self) -> list[Any]:
        """The values to check: if these are valid, all values of the axis are."""
        return list(self.choice) if self.choice is not None else list(self.bounds)

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_a_mapping(cls, content: Any) -> Any:
        """Refuse a plain list, which could mean a choice or a range, and a single value."""
        if isinstance(content, Axis | dict):
            return content
        if isinstance(content, list) and content:
            numbers = [each for each in content if _is_number(each)]
            if len(content) != 2 or numbers != content or content[0] == content[1]:
                raise ValueError(f"a list is not an axis; type `{{choice: {spelled(content)}}}`")
            ends = sorted(numbers)
            kind = "log_uniform" if ends[0] > 0 and ends[1] >= 10 * ends[0] else "uniform"
            if all(isinstance(each, int) for each in ends):
                kind = "int"
            raise ValueError(
                f"{spelled(content)} could mean two choices or a range; type "
                f"`{{choice: {spelled(content)}}}` or `{{{kind}: {spelled(ends)}}}`"
            )
        raise ValueError(
            f"{shown(content)} is not an axis; give the values to search, like "
            "`{choice: [a, b]}` or `{uniform: [0.1, 0.5]}`; a value that all trials have belongs "
            "outside of space"
        )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        given = [kind for kind in _KINDS if self._values(kind) is not None]
        if len(given) != 1:
            found = f"this one has {' and '.join(given) or 'none'}"
            raise ValueError(f"an axis has exactly one of {', '.join(_KINDS)}; {found}")
        if self.choice is None:
            low, high = self.bounds
            if not low < high:
                raise ValueError(
                    f"low must be below high, not [{low}, {high}]; swap them, or widen the range"
                )
            if self.kind.startswith("log") and low <= 0:
                raise ValueError(f"a logarithmic axis needs low above 0, not {low}")
        return self

    def contains(self, value: Any) -> bool:
        """Return whether a value lies on the axis."""
        if self.choice is not None:
            return _same(value, self.choice)
        if not _is_number(value):
            return False
        if self.is_whole and value != int(value):
            return False
        low, high = self.bounds
        return bool(low <= value <= high)

    def describe(self) -> str:
        """Return the axis in words, for example `uniform 0.1 to 0.5`."""
        if self.choice is not None:
            return f"one of {self.choice}"
        low, high = self.bounds
        return f"{self.kind} {low:g} to {high:g}"

    def random_values(self, most: int, draw: random.Random) -> list[Any]:
        """Return different values in random order: all values of a choice, at most `most` whole
        numbers, or one real number."""
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
        """Return the axis as a distribution of Optuna."""
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
        """Return the config's value for a value of Optuna, whose choices can only be scalars."""
        if self.choice is None:
            return value
        return next(choice for choice in self.choice if _identical(to_optuna(choice), value))


Space = Mapping[str, Axis]


def to_optuna(value: Any) -> Any:
    """Return a value as Optuna takes it: a scalar as it is, anything else as JSON."""
    return value if isinstance(value, _SCALARS) else json.dumps(value, sort_keys=True)


def is_active(axis: Axis, point: Point) -> bool:
    """Return whether the axis's `when` holds at this point, so that the axis is drawn."""
    return all(
        other in point and holds(point[other], wanted) for other, wanted in axis.when.items()
    )


def suggest(trial: optuna.Trial, space: Space) -> Point:
    """Ask an Optuna trial for a value of every active axis."""
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
    """Raise InputError for a point outside the space. A point may leave axes out."""
    for path, value in point.items():
        if path not in space:
            raise InputError(f"points: {path!r} is not an axis; axes: {few(list(space)) or 'none'}")
        if not space[path].contains(value):
            raise InputError(
                f"points: {path} = {value!r} lies outside the space ({space[path].describe()}); "
                "change the point or widen the axis"
            )
        missing = [other for other in space[path].when if other not in point]
        if not missing and not is_active(space[path], point):
            raise InputError(
                f"points: {path} has no effect here, since its `when` does not hold; take it out"
            )


def grid(space: Space) -> list[Point]:
    """Return all points of a space, in the order of its axes. Raises InputError for an axis of
    real numbers."""
    for path, axis in space.items():
        if axis.choice is None and not axis.is_whole:
            raise InputError(
                f"space: {path} is {axis.kind}; a grid needs choice or int on all axes, so change "
                "it, or take another sampler"
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
    """Return what identifies a point."""
    return frozenset((path, to_optuna(value)) for path, value in point.items())


def untried_point(space: Space, tried: Collection[PointKey], draw: random.Random) -> Point | None:
    """Return a random point that was not tried; None if the space has no such point.

    This is a depth-first walk down the axes that turns back at every tried point. There are few of
    them, so it ends soon, however many points the space has.
    """

    def complete(point: Point, axes: list[tuple[str, Axis]]) -> Point | None:
        if not axes:
            return None if point_key(point) in tried else point
        (path, axis), *rest = axes
        if not is_active(axis, point):
            return complete(point, rest)
        # With one value more than there are tried points, at least one has no tried point below it.
        for value in axis.random_values(len(tried) + 1, draw):
            found = complete({**point, path: value}, rest)
            if found is not None:
                return found
        return None

    return complete({}, list(space.items()))


def holds(value: Any, wanted: Any) -> bool:
    """Return whether a value is what `when` wants: a value, one of a list, or `not null`."""
    if wanted == NOT_NULL:
        return value is not None
    return _same(value, wanted) if isinstance(wanted, list) else _identical(value, wanted)


def _same(value: Any, among: list[Any]) -> bool:
    return any(_identical(value, other) for other in among)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _identical(left: Any, right: Any) -> bool:
    """Return whether two values are the same: 1 and 1.0 are, but True and 1 are not."""
    return bool(left == right) and isinstance(left, bool) == isinstance(right, bool)
