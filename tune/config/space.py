"""The axes of a search: parse, check, turn into Optuna's suggestions. Knows no Ray."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Collection, Mapping
from itertools import product
from typing import TYPE_CHECKING, Any, Self, get_args

from pydantic import Field, model_validator

from dpo_train.config import TrainConfig
from dpo_train.config_base import Part, field_paths, override, unknown_path
from dpo_train.errors import InputError

if TYPE_CHECKING:
    import optuna

NOT_NULL = "not null"
_SCALARS = (type(None), bool, int, float, str)
_KINDS = ("log_uniform", "uniform", "log_int", "int", "choice")
_WHOLE = {"log_uniform": "log_int", "uniform": "int"}
"""The axis of whole numbers that is drawn as this one."""
_OF_THE_REFERENCE = ("model", "data")
_OF_ALL_TRIALS = ("trainer", "eval_every_pairs", "eval_at_pairs", "simulated")

Point = dict[str, Any]
"""Values of the active axes, by dotted path."""
PointKey = frozenset[tuple[str, Any]]
"""What identifies a point: two points are the same if their keys are equal."""


class Axis(Part):
    """What one field of the trial's config may be; exactly one kind."""

    log_uniform: tuple[float, float] | None = None
    """[low, high], drawn evenly in the logarithm."""
    uniform: tuple[float, float] | None = None
    """[low, high], drawn evenly."""
    log_int: tuple[int, int] | None = None
    """[low, high], whole numbers, drawn evenly in the logarithm, both ends included."""
    int_: tuple[int, int] | None = Field(None, alias="int")
    """[low, high], whole numbers, both ends included."""
    choice: list[Any] | None = Field(None, min_length=1)
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

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        given = [kind for kind in _KINDS if self._values(kind) is not None]
        if len(given) != 1:
            raise ValueError(f"an axis has exactly one of {', '.join(_KINDS)}; here {given}")
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
        if isinstance(value, bool) or not isinstance(value, int | float):
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


def check_space(space: Space, base: TrainConfig) -> None:
    """Raises InputError for an axis that can't be searched, with the reason."""
    known = field_paths(TrainConfig)
    for path, axis in space.items():
        if path not in known:
            raise InputError(f"space: {unknown_path(path, known)}")
        part = known[path]
        if part is not None and path != "lora":
            fields = ", ".join(f"{path}.{name}" for name in part.model_fields)
            raise InputError(f"space: {path} is a part, not a field; make axes of {fields}")
        root = path.split(".")[0]
        if root in _OF_THE_REFERENCE:
            raise InputError(
                f"space: {path} changes the reference model's log-probs, which one search "
                "computes once; run one search for each value"
            )
        if root in _OF_ALL_TRIALS:
            raise InputError(f"space: {path} must be the same for all trials of a search")
        for other in axis.when:
            if other not in space or list(space).index(other) >= list(space).index(path):
                raise InputError(
                    f"space: {path}.when names {other!r}, which is no axis above it; "
                    f"axes: {', '.join(space)}"
                )
        _check_parent(path, axis, space, base)
        if axis.kind in _WHOLE and _takes_whole_numbers(path):
            low, high = axis.bounds
            raise InputError(
                f"space: {path} is a whole number, and {axis.kind} draws fractions; type "
                f"`{path}: {{{_WHOLE[axis.kind]}: [{low:g}, {high:g}]}}`"
            )
        for value in axis.corners:
            _check_corner(path, axis, value, space, base)


def _takes_whole_numbers(path: str) -> bool:
    """Whether the field at the path takes whole numbers alone."""
    part, _, name = path.rpartition(".")
    fields = field_paths(TrainConfig)[part] if part else TrainConfig
    assert fields is not None
    annotation = fields.model_fields[name].annotation
    kinds = {annotation, *get_args(annotation)}
    return int in kinds and float not in kinds


def _check_parent(path: str, axis: Axis, space: Space, base: TrainConfig) -> None:
    """`lora.r` means something only where `lora` is not null."""
    parent = path.rpartition(".")[0]
    if parent != "lora":
        return
    always = base.lora is not None and parent not in space
    if not always and parent not in axis.when:
        raise InputError(
            f"space: {path} is an axis while lora may be null; add `lora: {{}}` to the YAML, or "
            f'make lora an axis and add `when: {{lora: "{NOT_NULL}"}}` to this one'
        )


def _check_corner(path: str, axis: Axis, value: Any, space: Space, base: TrainConfig) -> None:
    point: Point = {}
    for other, wanted in axis.when.items():
        point[other] = next(
            (choice for choice in space[other].corners if _holds(choice, wanted)), None
        )
    try:
        override(base, {**point, path: value})
    except InputError as error:
        raise InputError(f"space: {path}: {str(error).removeprefix('override: ')}") from None


def is_active(axis: Axis, point: Point) -> bool:
    return all(
        other in point and _holds(point[other], wanted) for other, wanted in axis.when.items()
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
            raise InputError(f"points: {path!r} is no axis; axes: {', '.join(space)}")
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


def _holds(value: Any, wanted: Any) -> bool:
    if wanted == NOT_NULL:
        return value is not None
    return _same(value, wanted) if isinstance(wanted, list) else _identical(value, wanted)


def _same(value: Any, among: list[Any]) -> bool:
    return any(_identical(value, other) for other in among)


def _identical(left: Any, right: Any) -> bool:
    """1 equals 1.0, but True does not equal 1."""
    return bool(left == right) and isinstance(left, bool) == isinstance(right, bool)
