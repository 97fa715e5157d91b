"""Computes how much memory a worker may take: its share of what is free on its machine."""

from __future__ import annotations

import os
from pathlib import Path

from dpo_train.memory import (
    MOST_SHARE,
    SAFE_SHARE,
    MemoryBounds,
    free_memory_bytes,
    resident_bytes,
)
from tune.config.schema import SearchConfig
from tune.workers.threads import node_cpus

_WORKERS = ("ray::EngineActor", "ray::ResourceTrainable", "ray::Member")
"""The titles, as `ps` shows them, of processes that share the memory: engines, trials as Ray Tune
wraps them, and members of a group."""
_LIGHT_BYTES = 150_000_000
"""Memory of a packed trial's own process, which holds no model."""
_THRESHOLD = "RAY_memory_usage_threshold"
_BELOW_THRESHOLD = 0.9
"""The part of the threshold of Ray's memory monitor up to which a search takes memory."""


def memory_bounds(
    processes: int, light: int = 0, device_share: float = 1.0, most_tokens: int | None = None
) -> MemoryBounds:
    """Return the bounds of one of `processes` workers, beside `light` processes without a model.

    Memory that workers already hold counts as free, since it is part of what they share.
    """
    free = search_bytes() + _bytes_of_workers() - light * _LIGHT_BYTES
    return MemoryBounds(max(0, free), max(1, processes), device_share, most_tokens)


def trial_bounds(
    search: SearchConfig, at_once: int | None, most_tokens: int | None
) -> MemoryBounds:
    """Return the bounds of a trial that trains in its own process. `at_once` is the most trials at
    once; None is as many as the CPUs hold."""
    resources, most = search.resources, search.total_trials
    processes = min(most, at_once or most, int(node_cpus() / resources.cpus))
    share = resources.gpus if 0 < resources.gpus < 1 else 1.0
    return memory_bounds(processes, device_share=share, most_tokens=most_tokens)


def search_bytes() -> int:
    """Return how much more of this machine's memory a search may take.

    That is `free_memory_bytes`, or less if someone lowered the threshold at which Ray's memory
    monitor ends processes: the search stays below it.
    """
    highest = _BELOW_THRESHOLD * float(os.environ.get(_THRESHOLD) or 1)
    return free_memory_bytes(min(SAFE_SHARE, highest), min(MOST_SHARE, highest))


def _bytes_of_workers() -> int:
    return sum(resident_bytes(process) for process in _workers())


def _workers() -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                title = (folder / "cmdline").read_bytes()
            except OSError:  # the process has ended, or belongs to another user
                continue
            if title.decode(errors="replace").startswith(_WORKERS):
                found.append(int(folder.name))
    return found
