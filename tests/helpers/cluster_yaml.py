"""cluster.yaml after an edit by hand: a commented block replaces the keys that it names."""

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
    """Return cluster.yaml as it is."""
    config: dict[str, Any] = yaml.safe_load(TEXT)
    return config


def on(provider: str) -> dict[str, Any]:
    """Return cluster.yaml with a block. A block begins after its first empty comment line."""
    block = BLOCKS[provider]
    replaced = block["keys"].split(", ")
    assert set(replaced) <= on_aws().keys()
    _, _, content = block["lines"].partition("#\n")
    lines = (line.removeprefix("#").removeprefix(" ") for line in content.splitlines())
    unchanged = {key: value for key, value in on_aws().items() if key not in replaced}
    return unchanged | yaml.safe_load("\n".join(lines))
