"""Writes `docs/reference.md`: every field of every YAML, with type, default and meaning.

Everything on the page comes from the configuration classes. The tables below hold only what those
classes can't say of themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dpo_train.config import TrainConfig
from dpo_train.config_fields import few, field_paths, literals, spelled, words
from dpo_train.config_names import NAMES_IN_TRL
from dpo_train.errors import InputError
from serve.app import ReplicaOptions
from serve.options import Options
from tune.config.json_schema import search_schema
from tune.config.objective import Bound
from tune.config.schema import SearchConfig
from tune.config.space import Axis

_HEAD = """\
# Reference: every field

This page is made from the docstrings of the fields, and a test compares it. To change it, change
a docstring and type `dpo-tune schema --markdown > docs/reference.md`.

- [A search](#a-search): the YAML of `dpo-tune run`. It may also have all fields of a trial.
- [A trial](#a-trial): the YAML of `python -m dpo_train`. A search varies these fields.
- [The server](#the-server): the options of `python -m serve`, and `args` in `deploy/serve.yaml`.

A heading is a path. The field `batch_size` under `optim` is `optim: {batch_size: 8}` in a YAML,
and `--set optim.batch_size=8` on the command line. The column *in TRL* has the field's name in
TRL's `DPOConfig` where that is another one.
"""
_SERVER = """\
`python -m serve` takes `model` without a name, and each other field as an option, like
`--allowed-origins`. There several models have spaces between them, and `--host` and `--port` say
where the server listens.
"""
_TYPES = {
    "objective": "a [metric](trust.md#metrics), or a list of two",
    "stopping.metric": "a [metric](trust.md#metrics)",
    "points": "a list of points, or a mapping of from, best",
    "space": "a mapping of paths to axes ([space.PATH](#spacepath))",
    "constraints": "a mapping of metrics to bounds ([constraints.METRIC](#constraintsmetric))",
}
"""By path what a field may be, where its annotation does not say it in words."""
_DEFAULTS = {
    "name": "the name of the YAML file",
    "space": "required",
    "runs_dir": "`runs`",
}
"""By path the default that is computed outside of the class."""


def as_markdown() -> str:
    """The content of the page. Raises InputError that names a field without a docstring."""
    trial = list(TrainConfig.model_fields)
    blocks = [
        _HEAD,
        "## A search\n",
        _table(SearchConfig, "", leave_out=trial),
        *_parts(SearchConfig, leave_out=trial),
        "### points.from and points.best\n",
        _points(),
        "### space.PATH\n",
        _table(Axis, "space.PATH."),
        "### constraints.METRIC\n",
        _table(Bound, "constraints.METRIC."),
        "## A trial\n",
        _table(TrainConfig, ""),
        *_parts(TrainConfig, leave_out=[]),
        "## The server\n",
        _SERVER,
        _table(Options, ""),
        "### Replicas on Ray Serve\n",
        _table(ReplicaOptions, "", leave_out=list(Options.model_fields)),
    ]
    return "\n".join(blocks)


def _parts(kind: type[BaseModel], leave_out: list[str]) -> Iterator[str]:
    """A heading and a table for each part of a configuration, at any depth."""
    for path, part in field_paths(kind).items():
        if part is not None and path.split(".")[0] not in leave_out:
            yield f"### {path}\n"
            yield _table(part, f"{path}.")


def _table(kind: type[BaseModel], prefix: str, leave_out: list[str] | None = None) -> str:
    """The fields of one class. `prefix` is the path of the part with a dot behind it."""
    fields = {
        name: field for name, field in kind.model_fields.items() if name not in (leave_out or ())
    }
    names_in_trl = {name: _in_trl(prefix + name) for name in fields}
    head = ["field", "type", "default", "meaning"]
    if any(names_in_trl.values()):
        head.insert(1, "in TRL")
    lines = [head, ["---"] * len(head)]
    for name, field in fields.items():
        path = prefix + name
        if not field.description:
            raise InputError(
                f"reference: {kind.__module__}.{kind.__name__}.{name} has no docstring; write one "
                "below the field"
            )
        row = [f"`{field.alias or name}`", _type(path, field), _default(path, field)]
        if len(head) > 4:
            row.insert(1, names_in_trl[name])
        lines.append([*row, " ".join(field.description.split())])
    return _rows(lines)


def _rows(lines: list[list[str]]) -> str:
    escaped = [[cell.replace("|", r"\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def _points() -> str:
    """The two fields of `points: {from: RUN, best: 5}`. They are no Pydantic class, so their words
    come from the JSON schema."""
    schema: Mapping[str, dict[str, object]] = search_schema()["properties"]["points"]["anyOf"][1][
        "properties"
    ]
    kinds = {"string": "a text", "integer": "a whole number of at least 1"}
    lines = [["field", "type", "default", "meaning"], ["---"] * 4]
    for name, field in schema.items():
        default = f"`{field['default']}`" if "default" in field else "required"
        lines.append([f"`{name}`", kinds[str(field["type"])], default, str(field["description"])])
    return _rows(lines)


def _in_trl(path: str) -> str:
    return ", ".join(f"`{name}`" for name in NAMES_IN_TRL.get(path, ()))


def _type(path: str, field: FieldInfo) -> str:
    """What the field may be, in words; a part is a link to its own heading."""
    if path in _TYPES:
        return _TYPES[path]
    text = words(field.annotation, field.metadata)
    if names := literals(field.annotation):
        short, full = few(names), ", ".join(f"`{name}`" for name in names)
        text = text.replace(short, full, 1).replace(f"one of {short}", "one of these")
    if text.startswith("a mapping of "):
        is_optional = " or null" if text.endswith(" or null") else ""
        text = f"a mapping ([{path}](#{path.replace('.', '')})){is_optional}"
    return text


def _default(path: str, field: FieldInfo) -> str:
    """The default as a YAML has it. A part has none of its own: its fields have."""
    if path in _DEFAULTS:
        return _DEFAULTS[path]
    if field.is_required():
        return "required"
    if isinstance(field.default, BaseModel):
        return ""
    return f"`{spelled(field.default)}`" if field.default != "" else "empty"
