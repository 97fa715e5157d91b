"""Pareto domination, by its definition."""

from __future__ import annotations


def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Return whether one point dominates another; larger values are better."""
    return one != other and one[0] >= other[0] and one[1] >= other[1]
