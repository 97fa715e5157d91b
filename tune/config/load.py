"""Reads a search's YAML: a pure function of the file, the overrides and the environment.

Reaches no run folder, no object store and no Ray.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpo_train.config_base import Overrides, YamlTree, parse, read_yaml
from dpo_train.errors import InputError
from tune.config.checks import check, refuse_without_axes
from tune.config.schema import SearchConfig


def load_search(path: Path, overrides: Overrides | None = None) -> SearchConfig:
    """Reads a search's YAML and checks all that the file alone can tell. Raises InputError.

    `points: {from: …}` stays as it is; `tune.search.warm_start` finds those points.
    """
    content = read_yaml(path)
    if "name" not in content:
        content["name"] = re.sub(r"[^A-Za-z0-9._-]", "-", Path(path).stem)
    _drop_removed(content, path)
    return check(parse(SearchConfig, content, overrides or {}, str(path)))


def search_of(content: Mapping[str, Any], overrides: Overrides | None = None) -> SearchConfig:
    """The same of what a YAML holds, as a mapping. Without a `name` it is `search`."""
    return check(parse(SearchConfig, {"name": "search", **content}, overrides or {}, "search"))


def load_new_search(path: Path, overrides: Overrides | None = None) -> SearchConfig:
    """The same of a search that is to begin: it must have something to search. Raises InputError;
    a folder of an earlier version may hold one that has nothing."""
    config = load_search(path, overrides)
    refuse_without_axes(config, str(path))
    return config


def _drop_removed(content: YamlTree, path: Path) -> None:
    """Takes out what earlier versions wrote into every run folder and this one does not have.
    Raises InputError where it asked for what can't be had any more."""
    confirm = content.get("confirm")
    given = {"select": content.pop("select", "best")}
    if isinstance(confirm, dict) and "decide_by" in confirm:
        content["confirm"] = {key: confirm[key] for key in confirm if key != "decide_by"}
        given["confirm.decide_by"] = confirm["decide_by"]
    for name, value in given.items():
        if value not in ("best", None):
            raise InputError(
                f"{path}: {name}: {value} was removed: one rule chooses the winner "
                f"(docs/trust.md); take {name} out"
            )
