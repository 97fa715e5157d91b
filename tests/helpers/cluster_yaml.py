"""cluster.yaml as a person would edit it: a commented block in the place of the keys it names."""

import re
from typing import Any

import yaml

from tests.conftest import ROOT

TEXT = (ROOT / "cluster.yaml").read_text()
_BLOCK = re.compile(
    r"^# --- (?P<name>.*), in place of: (?P<keys>.*)\n(?P<lines>(?:#.*\n)+?)# ---$", re.MULTILINE
)
BLOCKS = {block["name"]: block for block in _BLOCK.finditer(TEXT)}


def on_aws() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(TEXT)
    return config


def on(provider: str) -> dict[str, Any]:
    """The block is what follows its first empty comment line; above it are words."""
    block = BLOCKS[provider]
    replaced = block["keys"].split(", ")
    assert set(replaced) <= on_aws().keys()
    _, _, content = block["lines"].partition("#\n")
    lines = (line.removeprefix("#").removeprefix(" ") for line in content.splitlines())
    unchanged = {key: value for key, value in on_aws().items() if key not in replaced}
    return unchanged | yaml.safe_load("\n".join(lines))
