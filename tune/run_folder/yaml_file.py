"""`search.yaml` in the run folder, and other YAML files that are written."""

from __future__ import annotations

import io
from pathlib import Path

from pydantic import JsonValue
from ruamel.yaml import YAML

from dpo_train.config_base import YamlTree
from dpo_train.storage.files import write_atomically
from tune.config.schema import SearchConfig


def write_yaml(path: Path, config: SearchConfig) -> None:
    """Saves the resolved configuration as `search.yaml`."""
    dump_yaml(path, config.model_dump(mode="json", by_alias=True))


def dump_yaml(path: Path, content: YamlTree) -> None:
    stream = io.StringIO()
    YAML(typ="rt", pure=True).dump(content, stream)
    write_atomically(path, stream.getvalue())


def flat(tree: JsonValue, prefix: str = "") -> dict[str, JsonValue]:
    """The leaves of a nested mapping by their dotted paths."""
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree}
    leaves: dict[str, JsonValue] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return leaves
