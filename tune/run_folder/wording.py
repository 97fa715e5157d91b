"""Points and durations as people read them."""

from __future__ import annotations

from tune.config.space import Point


def describe(point: Point) -> str:
    """A point on one line, by the last part of each path."""
    parts = []
    for path, value in point.items():
        shown = f"{value:.3g}" if isinstance(value, float) else str(value)
        parts.append(f"{path.rpartition('.')[2]}={shown}")
    return " ".join(parts)


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
