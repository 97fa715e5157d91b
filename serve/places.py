"""How a model is named on a command line or in a config file: `PLACE` or `NAME=PLACE`."""

from __future__ import annotations

from pathlib import Path


def split(models: str) -> list[str]:
    """Several, apart by commas."""
    return [model.strip() for model in models.split(",")]


def parse(model: str) -> tuple[str, str]:
    """(name, place); the name is empty if none is given. A folder's own path may hold a `=`."""
    if "=" not in model or Path(model).expanduser().is_dir():
        return "", model
    name, _, place = model.partition("=")
    return name, place
