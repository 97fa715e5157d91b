"""Reads a search's YAML. The result depends only on the file, the overrides and the environment.

This module knows no run folder, no object store and no Ray.
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
    """Read a search's YAML and make all checks that need nothing but the file. Raises InputError.

    `points: {from: …}` stays as it is; `tune.search.warm_start` reads those points.
    """
    content = read_yaml(path)
    if "name" not in content:
        content["name"] = re.sub(r"[^A-Za-z0-9._-]", "-", Path(path).stem)
    _drop_removed(content, path)
    return check(parse(SearchConfig, content, overrides or {}, str(path)))


def search_of(content: Mapping[str, Any], overrides: Overrides | None = None) -> SearchConfig:
    """Check a search that is given as a mapping, like the content of a YAML. Its default name is
    `search`. Raises InputError."""
    return check(parse(SearchConfig, {"name": "search", **content}, overrides or {}, "search"))


def load_new_search(path: Path, overrides: Overrides | None = None) -> SearchConfig:
    """Read the YAML of a new search, which must have a space. Raises InputError.

    (Run folders of earlier versions may hold a search without a space.)
    """
    config = load_search(path, overrides)
    refuse_without_axes(config, str(path))
    return config


def _drop_removed(content: YamlTree, path: Path) -> None:
    """Remove settings that earlier versions wrote into every run folder and this one lacks.

    Raises InputError if such a setting had a value that is no longer supported.
    """
    confirm = content.get("confirm")
    given = {"select": content.pop("select", "best")}
    if isinstance(confirm, dict) and "decide_by" in confirm:
        content["confirm"] = {key: confirm[key] for key in confirm if key != "decide_by"}
        given["confirm.decide_by"] = confirm["decide_by"]
    for name, value in given.items():
        if value not in ("best", None):
            raise InputError(
                f"{path}: {name}: {value} is no longer supported, since one rule now chooses the "
                f"winner (docs/trust.md); take {name} out"
            )
