"""What is wrong with a configuration, in one sentence: the place, what is allowed, what to type.

Pydantic finds what is wrong; none of its own messages is shown.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from dpo_train.config_fields import (
    Place,
    example,
    few,
    field_paths,
    literals,
    place_at,
    spelled,
)
from dpo_train.config_names import OF_AXES, OF_OTHERS, OF_TRL, instead

_MOST_SUGGESTIONS = 5
_LEAST_LIKENESS, _AS_ALIKE = 0.6, 0.05
"""By difflib's ratio: how alike a name must be, and how far others may lie behind the nearest."""
_OWN_WORDS = "value_error"
"""The type of an error that a validator of ours raised."""


def fault(error: ValidationError, kind: type[BaseModel]) -> str:
    """The first thing that is wrong, and how many more there are."""
    found: dict[str, tuple[ErrorDetails, Place]] = {}
    for problem in error.errors(include_url=False):
        place = place_at(kind, problem["loc"])
        field = ".".join(key for key in place.keys if not key.isdigit())
        # Of a union each member complains: the one that reached the deepest place says it best.
        if field not in found or len(place.keys) > len(found[field][1].keys):
            found[field] = problem, place
    problem, place = next(iter(found.values()))
    rest = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return _sentence(problem, place, kind) + rest


def unknown_path(path: str, known: Iterable[str]) -> str:
    """What to say of a dotted path that is none of those known."""
    known = list(known)
    for whole in known:
        if path.startswith(f"{whole}.") and not any(p.startswith(f"{whole}.") for p in known):
            below = path.removeprefix(f"{whole}.")
            return f"unknown path {path!r}; give {whole} as a whole, like `{whole}={{{below}: …}}`"
    parent = path.rpartition(".")[0]
    siblings = [each for each in known if each.rpartition(".")[0] == parent]
    return f"unknown path {path!r}; {_instead(path, siblings or known, known)}"


def one_of(given: object, allowed: Sequence[str]) -> str:
    """What to say of a value that is none of the texts allowed."""
    if len(allowed) <= _MOST_SUGGESTIONS:
        return f"must be one of {', '.join(allowed)}, not {shown(given)}"
    if close := _close(str(given), allowed):
        return f"there is no {shown(given)}; {_did_you_mean(close)}"
    return f"there is no {shown(given)}; allowed are {few(allowed)}"


def shown(given: object) -> str:
    """A value as it was given, cut to a line."""
    text = repr(given) if isinstance(given, str) else spelled(given)
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:57]}…"


def _sentence(problem: ErrorDetails, place: Place, kind: type[BaseModel]) -> str:
    path, given = place.path, problem.get("input")
    if place.keys[:1] == ("space",) and len(place.keys) > 1:  # its keys are paths themselves
        path = f"space: {'.'.join(place.keys[1:])}"
    if problem["type"] == "extra_forbidden":
        return _unknown_key(path, place, kind)
    if problem["type"] == _OWN_WORDS:
        message = " ".join(problem["msg"].removeprefix("Value error, ").split())
        part, name = field_paths(kind).get(path), message.partition(": ")[0]
        if part is not None and name in part.model_fields:
            return f"{path}.{message}"
        return (f"{path}: " if path else "") + message[:1].lower() + message[1:]
    typed = f"; type `{text}`" if (text := example(place, given)) else ""
    if problem["type"] == "missing" and isinstance(problem["loc"][-1], str):
        return f"{path} is missing; it must be {place.words}{typed}"
    names = literals(place.annotation)
    if names and isinstance(given, str):
        return f"{path}: {one_of(given, names)}"
    if given is None:
        return f"{path} is null; it must be {place.words}{typed}"
    return f"{path}: must be {place.words}, not {shown(given)}{typed}"


def _unknown_key(path: str, place: Place, kind: type[BaseModel]) -> str:
    known, parent = field_paths(kind), ".".join(place.keys[:-1])
    names = [f.alias or name for name, f in place.part.model_fields.items()] if place.part else []
    if parent and known.get(parent) is None:  # an axis, a bound: what stands there has no path
        axis = instead(place.keys[-1], OF_AXES) if {"log_uniform", "choice"} <= set(names) else ""
        name = place.keys[-1]
        meant = f"type `{{{axis}}}`" if axis else _instead(name, names, ())
        return f"{path.removesuffix(f'.{name}')}: unknown key {name!r}; {meant}"
    siblings = [f"{parent}.{name}" if parent else name for name in names]
    return f"unknown key {path!r}; {_instead(place.path, siblings, known)}"


def _instead(path: str, siblings: Sequence[str], known: Iterable[str]) -> str:
    """What could have been meant: another program's name for it, the same name at another level,
    or one that is spelled alike."""
    name, known = path.rpartition(".")[2], list(known)
    ours = instead(name, OF_OTHERS)
    if ours in known:
        return _did_you_mean([ours])
    if same := [each for each in known if each.rpartition(".")[2] == name]:
        return _did_you_mean(same)
    if known and (advice := instead(name, OF_TRL)):
        return advice
    if alike := _alike(name, siblings) or _alike(name, known):
        return _did_you_mean(alike)
    return f"allowed here: {few([each.rpartition('.')[2] for each in siblings])}"


def _alike(name: str, paths: Iterable[str]) -> list[str]:
    """The paths whose last part is spelled like the name, the nearest first."""
    by_name: dict[str, list[str]] = {}
    for path in paths:
        by_name.setdefault(path.rpartition(".")[2], []).append(path)
    return [path for close in _close(name, list(by_name)) for path in by_name[close]]


def _close(name: str, among: Sequence[str]) -> list[str]:
    """The names that are spelled most alike, at most five."""
    lower = {each.lower(): each for each in among}
    best = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=_LEAST_LIKENESS)
    if not best:
        return []
    likeness = difflib.SequenceMatcher(None, best[0], name.lower()).ratio()
    close = difflib.get_close_matches(
        name.lower(), lower, n=_MOST_SUGGESTIONS, cutoff=likeness - _AS_ALIKE
    )
    return [lower[each] for each in close]


def _did_you_mean(names: Sequence[str]) -> str:
    *rest, last = map(repr, names[:_MOST_SUGGESTIONS])
    return f"did you mean {', '.join(rest)} or {last}?" if rest else f"did you mean {last}?"
