"""The fields of a configuration class: their dotted paths, and in words what each may be.

This module knows no field of any configuration, and reads no file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

_MOST_NAMES = 5
"""Names in a list. People do not read longer ones."""


@dataclass(frozen=True)
class Allowed:
    """Says in a field's annotation what is allowed, if the type does not: `must be {words}`."""

    words: str


@dataclass(frozen=True)
class Location:
    """A location in a configuration, and what is allowed at it."""

    keys: tuple[str, ...]
    """The keys of the YAML that lead to it, with the number of a list's element."""
    section: type[BaseModel] | None
    """The innermost configuration class around it."""
    field: FieldInfo | None
    """The field of that class that it belongs to."""
    annotation: Any
    """The type of its value, or None if that isn't known."""
    metadata: tuple[Any, ...] = ()
    """What Pydantic knows beside the type, for example bounds."""

    @property
    def path(self) -> str:
        """The dotted path."""
        return ".".join(self.keys)

    @property
    def words(self) -> str:
        """What is allowed, in words that continue `must be`."""
        return words(self.annotation, self.metadata)


def field_paths(kind: type[BaseModel], prefix: str = "") -> dict[str, type[BaseModel] | None]:
    """Return every dotted path of a config class, with the config class of its value, if any."""
    paths: dict[str, type[BaseModel] | None] = {}
    for name, field in kind.model_fields.items():
        section = next(_config_classes(field.annotation), None)
        paths[prefix + name] = section
        if section:
            paths |= field_paths(section, f"{prefix}{name}.")
    return paths


def locate(kind: type[BaseModel], location: Sequence[int | str]) -> Location:
    """Return the location of an error of Pydantic.

    `location` is Pydantic's, which also names members of unions.
    """
    keys: list[str] = []
    section: type[BaseModel] | None = kind
    field: FieldInfo | None = None
    inside: Any = kind
    metadata: tuple[Any, ...] = ()
    for key in location:
        model = next(_config_classes(inside), None)
        if model is not None:
            section, keys = model, [*keys, str(key)]
            fields = model.model_fields.items()
            field = next((each for name, each in fields if key in (name, each.alias)), None)
            inside = field.annotation if field else None
            metadata = tuple(field.metadata) if field else ()
            continue
        values = _values_in(inside)
        # An error in one number of a tuple is reported for the whole tuple.
        is_element = values is not None and (isinstance(key, int) or _is_mapping(inside))
        if is_element and key != "[key]":
            keys, inside, metadata = [*keys, str(key)], values, ()
    return Location(tuple(keys), section, field, inside, metadata)


def words(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """Return what a value of this type may be, in words that continue `must be`."""
    found = list(_flat(metadata))
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return words(inner[0], [*inner[1:], *found])
    if allowed := next((each.words for each in found if isinstance(each, Allowed)), ""):
        return allowed
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
    """Return the allowed texts of a Literal; an empty list if any text is allowed."""
    if get_origin(annotation) is Literal:
        return [each for each in get_args(annotation) if isinstance(each, str)]
    found = (literals(each) for each in get_args(annotation) if not isinstance(each, str))
    return list(dict.fromkeys(name for names in found for name in names))


def example(location: Location, given: object = None) -> str:
    """Return an example to type at a location, like `batch_size: 8`; empty if none is known.

    A word in place of a mapping is taken for its first field: `stopping: none` for `{name: none}`.
    """
    if location.field is None or not location.keys or location.keys[-1].isdigit():
        return ""
    field, kind = location.field, next(_config_classes(location.field.annotation), None)
    value = field.examples[0] if field.examples else field.default
    if kind is not None:
        name, first = next(iter(kind.model_fields.items()))
        if isinstance(given, str) and given in (literals(first.annotation) or [given]):
            return f"{location.keys[-1]}: {{{name}: {given}}}"
        value = {name: each.default for name, each in kind.model_fields.items()
                 if isinstance(each.default, int | float | str)}  # fmt: skip
        value = dict(list(value.items())[:2])
    known = isinstance(value, bool | int | float | str | list | tuple | dict)
    return f"{location.keys[-1]}: {spelled(value)}" if known and value not in ([], {}, ()) else ""


def spelled(value: Any) -> str:
    """Return a value as YAML writes it on one line."""
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
    """Return the names in a line: at most the first five, and how many more there are."""
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _config_classes(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the config classes of an annotation: itself, or those in its union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, UnionType, Annotated):
        for each in get_args(annotation):
            yield from _config_classes(each)


def _values_in(annotation: Any) -> Any:
    """Return the type of a list's or mapping's values; None for other types."""
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
    phrases = {"ge": "of at least", "gt": "above", "le": "at most", "lt": "below"}
    found = [
        f"{phrases[name]} {spelled(getattr(each, name))}"
        for name in phrases
        for each in metadata
        if getattr(each, name, None) is not None
    ]
    return f" {' and '.join(found)}" if found else ""


def _keys(kind: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in kind.model_fields.items()]
