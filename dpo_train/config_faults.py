"""Errors of a configuration, in one sentence: which field, what is allowed, what to type.

Pydantic finds the errors, but none of its own messages is shown.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from dpo_train.config_fields import (
    Location,
    example,
    few,
    field_paths,
    literals,
    locate,
    spelled,
)
from dpo_train.config_names import AXIS_ALIASES, FIELD_ALIASES, TRL_FIELDS, our_name

_MOST_SUGGESTIONS = 5
_MIN_LIKENESS, _NEARLY_AS_ALIKE = 0.6, 0.05
"""In difflib's ratio: how alike a suggested name must be, and how far other suggestions may be
behind the most alike one."""
_OUR_VALIDATOR = "value_error"
"""Pydantic's type of an error that one of our validators raised."""


def fault(error: ValidationError, kind: type[BaseModel]) -> str:
    """Return the first error as a sentence, and how many more there are."""
    found: dict[str, tuple[ErrorDetails, Location]] = {}
    for problem in error.errors(include_url=False):
        location = locate(kind, problem["loc"])
        field = ".".join(key for key in location.keys if not key.isdigit())
        # Each member of a union reports an error. The one that reached deepest fits best.
        if field not in found or len(location.keys) > len(found[field][1].keys):
            found[field] = problem, location
    problem, location = next(iter(found.values()))
    rest = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return _sentence(problem, location, kind) + rest


def unknown_path(path: str, known: Iterable[str]) -> str:
    """Return the message for a dotted path that is not one of the known paths."""
    known = list(known)
    for whole in known:
        if path.startswith(f"{whole}.") and not any(p.startswith(f"{whole}.") for p in known):
            below = path.removeprefix(f"{whole}.")
            return f"unknown path {path!r}; give {whole} as a whole, like `{whole}={{{below}: …}}`"
    parent = path.rpartition(".")[0]
    siblings = [each for each in known if each.rpartition(".")[0] == parent]
    return f"unknown path {path!r}; {_instead(path, siblings or known, known)}"


def one_of(given: object, allowed: Sequence[str]) -> str:
    """Return the message for a value that is not one of the allowed texts."""
    if len(allowed) <= _MOST_SUGGESTIONS:
        return f"must be one of {', '.join(allowed)}, not {shown(given)}"
    if close := _close(str(given), allowed):
        return f"there is no {shown(given)}; {_did_you_mean(close)}"
    return f"there is no {shown(given)}; allowed are {few(allowed)}"


def shown(given: object) -> str:
    """Return a value as the user wrote it, cut to 60 characters."""
    text = repr(given) if isinstance(given, str) else spelled(given)
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:57]}…"


def _sentence(problem: ErrorDetails, location: Location, kind: type[BaseModel]) -> str:
    path, given = location.path, problem.get("input")
    if location.keys[:1] == ("space",) and len(location.keys) > 1:  # its keys are paths themselves
        path = f"space: {'.'.join(location.keys[1:])}"
    if problem["type"] == "extra_forbidden":
        return _unknown_key(path, location, kind)
    if problem["type"] == _OUR_VALIDATOR:
        message = " ".join(problem["msg"].removeprefix("Value error, ").split())
        section, name = field_paths(kind).get(path), message.partition(": ")[0]
        if section is not None and name in section.model_fields:
            return f"{path}.{message}"
        return (f"{path}: " if path else "") + message[:1].lower() + message[1:]
    typed = f"; type `{text}`" if (text := example(location, given)) else ""
    if problem["type"] == "missing" and isinstance(problem["loc"][-1], str):
        return f"{path} is missing; it must be {location.words}{typed}"
    names = literals(location.annotation)
    if names and isinstance(given, str):
        return f"{path}: {one_of(given, names)}"
    if given is None:
        return f"{path} is null; it must be {location.words}{typed}"
    return f"{path}: must be {location.words}, not {shown(given)}{typed}"


def _unknown_key(path: str, location: Location, kind: type[BaseModel]) -> str:
    known, parent = field_paths(kind), ".".join(location.keys[:-1])
    fields = location.section.model_fields if location.section else {}
    names = [field.alias or name for name, field in fields.items()]
    if parent and known.get(parent) is None:  # an axis or a bound: its keys have no dotted path
        name = location.keys[-1]
        axis = our_name(name, AXIS_ALIASES) if {"log_uniform", "choice"} <= set(names) else ""
        meant = f"type `{{{axis}}}`" if axis else _instead(name, names, ())
        return f"{path.removesuffix(f'.{name}')}: unknown key {name!r}; {meant}"
    siblings = [f"{parent}.{name}" if parent else name for name in names]
    return f"unknown key {path!r}; {_instead(location.path, siblings, known)}"


def _instead(path: str, siblings: Sequence[str], known: Iterable[str]) -> str:
    """Return a suggestion for an unknown path.

    It is our name for another program's field, the same name in another section, or a name that is
    spelled alike. Otherwise it is what is allowed.
    """
    name, known = path.rpartition(".")[2], list(known)
    ours = our_name(name, FIELD_ALIASES)
    if ours in known:
        return _did_you_mean([ours])
    if same := [each for each in known if each.rpartition(".")[2] == name]:
        return _did_you_mean(same)
    if known and (advice := our_name(name, TRL_FIELDS)):
        return advice
    if alike := _alike(name, siblings) or _alike(name, known):
        return _did_you_mean(alike)
    return f"allowed here: {few([each.rpartition('.')[2] for each in siblings])}"


def _alike(name: str, paths: Iterable[str]) -> list[str]:
    """Return the paths whose last key is spelled like the name, the most alike first."""
    by_name: dict[str, list[str]] = {}
    for path in paths:
        by_name.setdefault(path.rpartition(".")[2], []).append(path)
    return [path for close in _close(name, list(by_name)) for path in by_name[close]]


def _close(name: str, among: Sequence[str]) -> list[str]:
    """Return the names that are spelled most like this one, at most five."""
    lower = {each.lower(): each for each in among}
    best = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=_MIN_LIKENESS)
    if not best:
        return []
    likeness = difflib.SequenceMatcher(None, best[0], name.lower()).ratio()
    close = difflib.get_close_matches(
        name.lower(), lower, n=_MOST_SUGGESTIONS, cutoff=likeness - _NEARLY_AS_ALIKE
    )
    return [lower[each] for each in close]


def _did_you_mean(names: Sequence[str]) -> str:
    *rest, last = map(repr, names[:_MOST_SUGGESTIONS])
    return f"did you mean {', '.join(rest)} or {last}?" if rest else f"did you mean {last}?"
