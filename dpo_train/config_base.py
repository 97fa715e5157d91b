"""The base class of configurations: frozen, strict, read from YAML, overridden by dotted path.

Every mistake is reported in one line. This module knows no field of any configuration.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from dpo_train.config_faults import fault, unknown_path
from dpo_train.config_fields import field_paths
from dpo_train.errors import InputError


class Part(BaseModel):
    """A frozen piece of configuration that refuses unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse `true` where a number is needed, because Pydantic would take it for 1."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and {int, float} & {annotation, *get_args(annotation)}:
            raise PydanticCustomError("true_is_no_number", "a number")
        return value


Config = TypeVar("Config", bound=Part)

YamlTree = dict[str, object]
"""A mapping from a YAML file that is not validated yet."""
Overrides = Mapping[str, object]
"""New values by dotted path."""


def read_yaml(path: Path) -> YamlTree:
    """Read a YAML 1.2 file that holds a mapping: `1e-5` is a number, and `off` is a word.

    Raises InputError for a file that can't be read, and for a duplicate key.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(
            f"{path}: can't be read ({reason}); give the path of a YAML file, or make one: "
            "`dpo-tune init`"
        ) from None
    try:
        content = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        problem = (getattr(error, "problem", None) or str(error)).split("\n")[0]
        line = f"line {mark.line + 1}: " if mark else ""
        raise InputError(f"{path}: {line}{problem}; {_remedy(problem)}") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"{path}: must be a mapping of keys to values, like `trials: 24`")
    return content


def _remedy(problem: str) -> str:
    """Return what to do about an error of the YAML parser."""
    if "duplicate key" in problem:
        return "a key may appear only once; take one of them out"
    if "\\t" in problem:
        return "indent with spaces, not with tabs"
    return "correct the line; YAML is written like `trials: 24` or `data: {id: pairs.jsonl}`"


def parse_overrides(texts: Iterable[str]) -> Overrides:
    """Return the values of `--set A.B=VALUE` by dotted path. Each is read as YAML.

    Raises InputError.
    """
    overrides = {}
    for text in texts:
        path, equals, value = text.partition("=")
        if not equals or not path.strip():
            missing = "path before its `=`" if equals else "`=`"
            raise InputError(f"--set: {text!r} has no {missing}; type `--set optim.epochs=2`")
        try:
            overrides[path.strip()] = YAML(typ="safe", pure=True).load(value)
        except (YAMLError, ValueError):
            raise InputError(
                f"--set: {value!r} is not a YAML value; quote it for the shell, like "
                f"`--set '{path}=[1, 2]'`"
            ) from None
    return overrides


def parse(
    kind: type[Config], content: Mapping[str, Any], overrides: Overrides, where: str
) -> Config:
    """Apply the overrides to the content and validate it. Raises InputError in one line.

    `where` is the file or option that the error names.
    """
    merged = dict(content)
    known = field_paths(kind)
    for path, value in overrides.items():
        *parents, last = path.split(".")
        # An unknown field in a section that exists is reported by that section, as in a YAML.
        if parents and path not in known and known.get(".".join(parents)) is None:
            raise InputError(f"{where}: {unknown_path(path, known)}")
        section = merged
        for key in parents:
            below = section.get(key)
            section[key] = dict(below) if isinstance(below, Mapping) else {}
            section = section[key]
        section[last] = value
    try:
        return kind.model_validate(merged)
    except ValidationError as error:
        raise InputError(f"{where}: {fault(error, kind)}") from None


def override(config: Config, values: Overrides) -> Config:
    """Return a copy of the config with new values at the dotted paths. Raises InputError."""
    return parse(type(config), config.model_dump(mode="json"), values, "override")
