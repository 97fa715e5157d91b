"""Writes `search.yaml` in the run folder, and other YAML files."""

from __future__ import annotations

import io
from pathlib import Path

from pydantic import BaseModel, JsonValue
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import RoundTripRepresenter

from dpo_train.config_base import YamlTree
from dpo_train.storage.files import write_atomically
from tune.config.schema import OUTPUTS, SearchConfig

_LEFT_OUT_BY_DEFAULT = ("simulated", "trl", *OUTPUTS)
"""Sections that most searches don't use."""


class _Representer(RoundTripRepresenter):
    """Writes null as `null`; ruamel would write nothing."""

    def represent_null(self, _: None) -> ScalarNode:
        """Returns the node of a null value."""
        return self.represent_scalar("tag:yaml.org,2002:null", "null")


_Representer.add_representer(type(None), _Representer.represent_null)


def write_yaml(path: Path, config: SearchConfig) -> None:
    """Saves the resolved configuration as `search.yaml`."""
    dump_yaml(path, search_content(config))


def search_content(config: SearchConfig) -> YamlTree:
    """Returns the resolved configuration as a person would write it.

    Values that are null or empty by default are omitted, and so are sections that the search does
    not use. Reading it gives the same configuration.
    """
    content = _content(config)
    for name in _LEFT_OUT_BY_DEFAULT:
        if getattr(config, name) == type(config).model_fields[name].default:
            content.pop(name, None)
    return content


def dump_yaml(path: Path, content: YamlTree) -> None:
    """Writes a YAML file atomically."""
    yaml, stream = YAML(typ="rt", pure=True), io.StringIO()
    yaml.Representer = _Representer
    yaml.dump(content, stream)
    write_atomically(path, stream.getvalue())


def flat(tree: JsonValue, prefix: str = "") -> dict[str, JsonValue]:
    """Returns the leaves of a nested mapping by their dotted paths."""
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree}
    leaves: dict[str, JsonValue] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return leaves


def _content(section: BaseModel) -> YamlTree:
    dumped, content = section.model_dump(mode="json", by_alias=True), YamlTree()
    for name, field in type(section).model_fields.items():
        value, key = getattr(section, name), field.alias or name
        if isinstance(value, BaseModel):
            content[key] = _content(value)
        elif isinstance(value, dict) and any(
            isinstance(each, BaseModel) for each in value.values()
        ):
            content[key] = {each: _content(below) for each, below in value.items()}
        elif value != field.default or value not in (None, [], {}):
            content[key] = _on_one_line(dumped[key])
    return content


def _on_one_line(value: object) -> object:
    """Returns a list of plain values in a form that is written on one line: `[1e-05, 0.0001]`."""
    if not isinstance(value, list) or any(isinstance(each, dict | list) for each in value):
        return value
    line = CommentedSeq(value)
    line.fa.set_flow_style()
    return line
