"""Decides which fields of a trial may be axes of a search, and whether an axis suits its field."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic.fields import FieldInfo

from dpo_train.config import TrainConfig
from dpo_train.config_base import override
from dpo_train.config_faults import unknown_path
from dpo_train.config_fields import few, field_paths
from dpo_train.errors import InputError
from tune.config.space import NOT_NULL, Axis, Point, Space, holds

_WHOLE = {"log_uniform": "log_int", "uniform": "int"}
"""For each kind of real-valued axis, the kind that draws whole numbers in the same way."""
_REFERENCE_SECTIONS = ("model", "data")
"""These decide the reference log-probs, which all trials of a search share."""
_SAME_FOR_ALL = ("trainer", "eval_every_pairs", "eval_at_pairs", "simulated")
_SEARCHED_WHOLE = "lora"
"""The one section that can be an axis itself, since it may be null."""


def searchable_fields() -> Iterator[tuple[str, FieldInfo]]:
    """Yield the dotted path and the field of everything that may be an axis."""
    known = field_paths(TrainConfig)
    for path, section in known.items():
        root, (parent, _, name) = path.split(".")[0], path.rpartition(".")
        if root in _REFERENCE_SECTIONS + _SAME_FOR_ALL:
            continue
        if section is None or path == _SEARCHED_WHOLE:
            holder = (known[parent] if parent else None) or TrainConfig
            yield path, holder.model_fields[name]


def check_space(space: Space, base: TrainConfig) -> None:
    """Raise InputError for an axis that can't be searched, with the reason."""
    known = field_paths(TrainConfig)
    for path, axis in space.items():
        # --- the path: a field that may differ between trials ---
        if path not in known:
            raise InputError(f"space: {unknown_path(path, known)}")
        section = known[path]
        if section is not None and path != _SEARCHED_WHOLE:
            fields = ", ".join(f"{path}.{name}" for name in section.model_fields)
            raise InputError(f"space: {path} is a section, not a field; make axes of {fields}")
        root = path.split(".")[0]
        if root in _REFERENCE_SECTIONS:
            raise InputError(
                f"space: {path} changes the reference model's log-probs, which a search computes "
                "only once; run one search for each value"
            )
        if root in _SAME_FOR_ALL:
            raise InputError(
                f"space: {path} must be the same for all trials of a search; give one value, "
                "outside of space"
            )

        # --- the axes that it depends on ---
        for other in axis.when:
            if other not in space or list(space).index(other) >= list(space).index(path):
                raise InputError(
                    f"space: {path}.when names {other!r}, which is not an axis listed before it; "
                    f"axes: {few(list(space))}"
                )
        _check_parent(path, axis, space, base)

        # --- its kind and its values ---
        if axis.kind in _WHOLE and _takes_whole_numbers(path):
            low, high = axis.bounds
            raise InputError(
                f"space: {path} is a whole number, but {axis.kind} draws fractions; type "
                f"`{path}: {{{_WHOLE[axis.kind]}: [{low:g}, {high:g}]}}`"
            )
        for value in axis.corners:
            _check_corner(path, axis, value, space, base)


def _takes_whole_numbers(path: str) -> bool:
    """Return whether the field at the path takes only whole numbers."""
    annotation = dict(searchable_fields())[path].annotation
    kinds = {annotation, *get_args(annotation)}
    return int in kinds and float not in kinds


def _check_parent(path: str, axis: Axis, space: Space, base: TrainConfig) -> None:
    """Raise InputError for an axis like `lora.r` if `lora` may be null while it is drawn."""
    parent = path.rpartition(".")[0]
    if parent != "lora":
        return
    always = base.lora is not None and parent not in space
    if not always and parent not in axis.when:
        raise InputError(
            f"space: {path} is an axis, but lora may be null; add `lora: {{}}` to the YAML, or "
            f'make lora an axis and add `when: {{lora: "{NOT_NULL}"}}` to this one'
        )


def _check_corner(path: str, axis: Axis, value: Any, space: Space, base: TrainConfig) -> None:
    point: Point = {}
    for other, wanted in axis.when.items():
        point[other] = next(
            (choice for choice in space[other].corners if holds(choice, wanted)), None
        )
    try:
        override(base, {**point, path: value})
    except InputError as error:
        raise InputError(f"space: {path}: {str(error).removeprefix('override: ')}") from None
