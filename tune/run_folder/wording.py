"""Formats points and durations for people."""

from __future__ import annotations

import json
from typing import Any

from tune.config.space import Point


def describe(point: Point) -> str:
    """Returns a point on one line, with the last part of each path.

    A group of fields is shown by its fields: `lora` with the value `{alpha: 32}` is `alpha=32`.
    """
    return " ".join(
        value_text(value)
        if isinstance(value, dict) and value
        else f"{path.rpartition('.')[2]}={value_text(value)}"
        for path, value in point.items()
    )


def value_text(value: Any, digits: int = 3) -> str:
    """Returns a value as text: `null`, `true`, `0.000317`, `alpha=32`; floats with `digits`."""
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    if isinstance(value, dict) and value:
        return describe(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def duration(seconds: float) -> str:
    """Returns a duration as text: `45 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
