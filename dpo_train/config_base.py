"""The parts of a configuration: frozen and strict, read from YAML, overridden by dotted path.

Every mistake is one line of cause. Knows no field of any of them.
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
        """Pydantic would take `true` for 1."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and {int, float} & {annotation, *get_args(annotation)}:
            raise PydanticCustomError("true_is_no_number", "a number")
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
            f"{path}: can't be read ({reason}); give the path of a YAML file, or make one: "
            "`dpo-tune init`"
        ) from None
    try:
        content = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        problem = (getattr(error, "problem", None) or str(error)).split("\n")[0]
        place = f"line {mark.line + 1}: " if mark else ""
        raise InputError(f"{path}: {place}{problem}; {_remedy(problem)}") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"{path}: must be a mapping of keys to values, like `trials: 24`")
    return content


def _remedy(problem: str) -> str:
    """What to do about an error in YAML's own words."""
    if "duplicate key" in problem:
        return "a key may appear only once; take one of them out"
    if "\\t" in problem:
        return "indent with spaces, not with tabs"
    return "correct the line; YAML is written like `trials: 24` or `data: {id: pairs.jsonl}`"


def parse_overrides(texts: Iterable[str]) -> Overrides:
    """The values by dotted path that `--set A.B=VALUE` gives, each read as YAML would read it.

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
    """Validates content with overrides applied. Raises InputError with one line of cause."""
    merged = dict(content)
    known = field_paths(kind)
    for path, value in overrides.items():
        *parents, last = path.split(".")
        # Of an unknown field in a part that exists, the part says what is wrong, as in a YAML.
        if parents and path not in known and known.get(".".join(parents)) is None:
            raise InputError(f"{where}: {unknown_path(path, known)}")
        part = merged
        for key in parents:
            below = part.get(key)
            part[key] = dict(below) if isinstance(below, Mapping) else {}
            part = part[key]
        part[last] = value
    try:
        return kind.model_validate(merged)
    except ValidationError as error:
        raise InputError(f"{where}: {fault(error, kind)}") from None


def override(config: Config, values: Overrides) -> Config:
    """A copy of the config with the values at the dotted paths. Raises InputError."""
    return parse(type(config), config.model_dump(mode="json"), values, "override")
