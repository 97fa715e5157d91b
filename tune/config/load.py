"""Reads a search's YAML: a pure function of the file, the overrides and the environment.

Reaches no run folder, no object store and no Ray.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpo_train.config_base import parse, read_yaml
from tune.config.checks import check
from tune.config.schema import SearchConfig


def load_search(path: Path, overrides: Mapping[str, Any] | None = None) -> SearchConfig:
    """Reads a search's YAML and checks all that the file alone can tell. Raises InputError.

    `points: {from: …}` stays as it is; `tune.search.warm_start` finds those points.
    """
    content = read_yaml(path)
    if "name" not in content:
        content["name"] = re.sub(r"[^A-Za-z0-9._-]", "-", Path(path).stem)
    return check(parse(SearchConfig, content, overrides or {}, str(path)))
