"""The parts of a configuration: frozen and strict, read from YAML, overridden by dotted path.

Every mistake is one line of cause. Knows no field of any of them.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from dpo_train.errors import InputError


class Part(BaseModel):
    """A frozen piece of configuration that refuses unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Pydantic would take `true` for 1."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and {int, float} & {annotation, *get_args(annotation)}:
            raise ValueError(f"must be a number, not {str(value).lower()}")
        return value


Config = TypeVar("Config", bound=Part)

YamlTree = dict[str, object]
"""A mapping as YAML has it, before it is validated: nothing is known of its values."""
Overrides = Mapping[str, object]
"""New values by dotted path."""


def read_yaml(path: Path) -> YamlTree:
    """Reads a mapping by YAML 1.2's rules: `1e-5` is a number, `off` a word, no key twice."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(
            f"{path}: can't be read ({reason}); give the path of a YAML file"
        ) from None
    try:
        content = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        problem = (getattr(error, "problem", None) or str(error)).split("\n")[0]
        place = f"line {mark.line + 1}: " if mark else ""
        raise InputError(f"{path}: {place}{problem}") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"{path}: must be a mapping of keys to values, like `trials: 24`")
    return content


def parse_overrides(texts: Iterable[str]) -> Overrides:
    """The values by dotted path that `--set A.B=VALUE` gives, each read as YAML would read it.

    Raises InputError.
    """
    overrides = {}
    for text in texts:
        path, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set: {text!r} has no `=`; type `--set optim.epochs=2`")
        try:
            overrides[path.strip()] = YAML(typ="safe", pure=True).load(value)
        except (YAMLError, ValueError):
            raise InputError(f"--set: {value!r} is not a YAML value") from None
    return overrides


def parse(
    kind: type[Config], content: Mapping[str, Any], overrides: Overrides, where: str
) -> Config:
    """Validates content with overrides applied. Raises InputError with one line of cause."""
    merged = dict(content)
    known = field_paths(kind)
    for path, value in overrides.items():
        if path not in known:
            raise InputError(f"{where}: {unknown_path(path, known)}")
        *parents, last = path.split(".")
        part = merged
        for key in parents:
            below = part.get(key)
            part[key] = dict(below) if isinstance(below, Mapping) else {}
            part = part[key]
        part[last] = value
    try:
        return kind.model_validate(merged)
    except ValidationError as error:
        raise InputError(f"{where}: {_fault(error, kind)}") from None


def override(config: Config, values: Overrides) -> Config:
    """A copy of the config with the values at the dotted paths. Raises InputError."""
    return parse(type(config), config.model_dump(mode="json"), values, "override")


def field_paths(kind: type[BaseModel], prefix: str = "") -> dict[str, type[BaseModel] | None]:
    """Every dotted path of a config class, with the class of the part that stands there."""
    paths: dict[str, type[BaseModel] | None] = {}
    for name, field in kind.model_fields.items():
        part = next(_parts(field.annotation), None)
        paths[prefix + name] = part
        if part:
            paths |= field_paths(part, f"{prefix}{name}.")
    return paths


def unknown_path(path: str, known: Mapping[str, Any]) -> str:
    """The sentence that says what could have been meant."""
    return f"unknown path {path!r}; {_nearest(path, known)}"


def _parts(annotation: Any) -> Iterator[type[BaseModel]]:
    union = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ()
    for kind in (annotation, *union):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield kind


def _nearest(key: str, known: Mapping[str, Any] | list[str]) -> str:
    close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}Allowed: {', '.join(known)}"


def _fault(error: ValidationError, kind: type[BaseModel]) -> str:
    problems = error.errors(include_url=False)
    first = problems[0]
    location = [str(key) for key in first["loc"]]
    path = ".".join(location)
    rest = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "extra_forbidden":
        part: type[BaseModel] | None = field_paths(kind).get(".".join(location[:-1]), kind)
        allowed = list(part.model_fields) if part else []
        return f"unknown key {path!r}; {_nearest(location[-1], allowed)}{rest}"
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    given = first.get("input")
    shown = "" if isinstance(given, dict) or given is None else f" (given: {str(given)[:60]!r})"
    return (f"{path}: " if path else "") + " ".join(message.split()) + shown + rest
