"""What the fields of a configuration class are: their dotted paths, and in words what each may be.

Knows no field of any configuration, and reads no file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

_MOST_NAMES = 5
"""A person reads no longer list."""


@dataclass(frozen=True)
class Allowed:
    """Says in a field's annotation what it may be, where its type does not: `must be {words}`."""

    words: str


@dataclass(frozen=True)
class Place:
    """What stands at a place of a configuration."""

    keys: tuple[str, ...]
    """As the YAML has them; the number of a list's element, too."""
    part: type[BaseModel] | None
    """The innermost class around the place."""
    field: FieldInfo | None
    """The field of that class in which the place lies."""
    annotation: Any
    """The type of what stands there, or None where it isn't known."""
    metadata: tuple[Any, ...] = ()
    """What Pydantic knows of it beside its type: bounds and the like."""

    @property
    def path(self) -> str:
        return ".".join(self.keys)

    @property
    def words(self) -> str:
        """What may stand there, as it goes on after `must be`."""
        return words(self.annotation, self.metadata)


def field_paths(kind: type[BaseModel], prefix: str = "") -> dict[str, type[BaseModel] | None]:
    """Every dotted path of a config class, with the class of the part that stands there."""
    paths: dict[str, type[BaseModel] | None] = {}
    for name, field in kind.model_fields.items():
        part = next(_parts(field.annotation), None)
        paths[prefix + name] = part
        if part:
            paths |= field_paths(part, f"{prefix}{name}.")
    return paths


def place_at(kind: type[BaseModel], location: Sequence[int | str]) -> Place:
    """The place of one of Pydantic's errors, whose location also names members of unions."""
    keys: list[str] = []
    part: type[BaseModel] | None = kind
    field: FieldInfo | None = None
    inside: Any = kind
    metadata: tuple[Any, ...] = ()
    for key in location:
        model = next(_parts(inside), None)
        if model is not None:
            part, keys = model, [*keys, str(key)]
            fields = model.model_fields.items()
            field = next((each for name, each in fields if key in (name, each.alias)), None)
            inside = field.annotation if field else None
            metadata = tuple(field.metadata) if field else ()
            continue
        values = _values_in(inside)
        # What is wrong with a number of a tuple is said of the whole tuple.
        is_element = values is not None and (isinstance(key, int) or _is_mapping(inside))
        if is_element and key != "[key]":
            keys, inside, metadata = [*keys, str(key)], values, ()
    return Place(tuple(keys), part, field, inside, metadata)


def words(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """What a value of this type may be, as it goes on after `must be`."""
    found = list(_flat(metadata))
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return words(inner[0], [*inner[1:], *found])
    if said := next((each.words for each in found if isinstance(each, Allowed)), ""):
        return said
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(words(each, found) for each in inner))
    if origin is Literal:
        return f"one of {few(list(map(str, inner)))}" if len(inner) > 1 else str(inner[0])
    if origin is list:
        return f"a list, each {words(inner[0])}"
    if origin is tuple:
        return f"{len(inner)} values, each {words(inner[0])}"
    if origin is dict or annotation is dict:
        return "a mapping"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"a mapping of {few(_keys(annotation))}"
    kinds = {bool: "true or false", str: "a text", NoneType: "null"}
    numbers = {int: "a whole number", float: "a number"}
    if annotation in numbers:
        return numbers[annotation] + _bounds(found)
    return kinds.get(annotation, "something else")


def literals(annotation: Any) -> list[str]:
    """The texts that are allowed, where only some are; else none."""
    if get_origin(annotation) is Literal:
        return [each for each in get_args(annotation) if isinstance(each, str)]
    found = (literals(each) for each in get_args(annotation) if not isinstance(each, str))
    return list(dict.fromkeys(name for names in found for name in names))


def example(place: Place, given: object = None) -> str:
    """What a person could type there, like `batch_size: 8`; empty if nothing is sure to do. A word
    in place of a part is taken for its first field: `stopping: none` for `{name: none}`."""
    if place.field is None or not place.keys or place.keys[-1].isdigit():
        return ""
    field, kind = place.field, next(_parts(place.field.annotation), None)
    value = field.examples[0] if field.examples else field.default
    if kind is not None:
        name, first = next(iter(kind.model_fields.items()))
        if isinstance(given, str) and given in (literals(first.annotation) or [given]):
            return f"{place.keys[-1]}: {{{name}: {given}}}"
        value = {name: each.default for name, each in kind.model_fields.items()
                 if isinstance(each.default, int | float | str)}  # fmt: skip
        value = dict(list(value.items())[:2])
    known = isinstance(value, bool | int | float | str | list | tuple | dict)
    return f"{place.keys[-1]}: {spelled(value)}" if known and value not in ([], {}, ()) else ""


def spelled(value: Any) -> str:
    """A value as YAML writes it on one line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:g}".replace("e-0", "e-").replace("e+0", "e+")
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {spelled(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(spelled, value))}]"
    return str(value)


def few(names: Sequence[str]) -> str:
    """The names, or the first of them and how many more there are."""
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _parts(annotation: Any) -> Iterator[type[BaseModel]]:
    """The config classes that an annotation names, itself or in a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, UnionType, Annotated):
        for each in get_args(annotation):
            yield from _parts(each)


def _values_in(annotation: Any) -> Any:
    """The type of a list's or mapping's values; None for other types."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is list:
        return inner[0]
    if origin is dict:
        return inner[1]
    if origin in (Union, UnionType, Annotated):
        return next(filter(None, map(_values_in, inner)), None)
    return None


def _is_mapping(annotation: Any) -> bool:
    origin = get_origin(annotation)
    return origin is dict or (
        origin in (Union, UnionType, Annotated) and any(map(_is_mapping, get_args(annotation)))
    )


def _flat(metadata: Iterable[Any]) -> Iterator[Any]:
    for each in metadata:
        yield from each.metadata if isinstance(each, FieldInfo) else (each,)


def _bounds(metadata: Iterable[Any]) -> str:
    said = {"ge": "of at least", "gt": "above", "le": "at most", "lt": "below"}
    found = [
        f"{said[name]} {spelled(getattr(each, name))}"
        for name in said
        for each in metadata
        if getattr(each, name, None) is not None
    ]
    return f" {' and '.join(found)}" if found else ""


def _keys(kind: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in kind.model_fields.items()]
