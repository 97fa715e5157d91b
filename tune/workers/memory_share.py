"""How much memory a worker may take: its share of what is free on its machine."""

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
"""How `ps` shows the processes of a search that take their share: engines, the trials as Ray Tune
wraps them, the members of a group."""
_LIGHT_BYTES = 150_000_000
"""What the process of a packed trial, which holds no model, takes for itself."""
_THRESHOLD = "RAY_memory_usage_threshold"
_BELOW_THRESHOLD = 0.9
"""How near a search comes to the share at which Ray's memory monitor ends processes."""


def memory_bounds(
    processes: int, light: int = 0, device_share: float = 1.0, most_tokens: int | None = None
) -> MemoryBounds:
    """The bounds of one of `processes` on this machine, beside so many light ones.

    What is free counts as if no worker were there: their shares are what is shared out.
    """
    free = search_bytes() + _bytes_of_workers() - light * _LIGHT_BYTES
    return MemoryBounds(max(0, free), max(1, processes), device_share, most_tokens)


def trial_bounds(
    search: SearchConfig, at_once: int | None, most_tokens: int | None
) -> MemoryBounds:
    """The bounds of a trial that trains in its own process. `at_once`: most trials of the search,
    None for as many as the CPUs hold."""
    resources, most = search.resources, search.total_trials
    processes = min(most, at_once or most, int(node_cpus() / resources.cpus))
    share = resources.gpus if 0 < resources.gpus < 1 else 1.0
    return memory_bounds(processes, device_share=share, most_tokens=most_tokens)


def search_bytes() -> int:
    """How much more a search may take of this machine's memory: `free_memory_bytes`, and no more
    than leaves it below the share at which Ray's memory monitor ends processes, if someone lowered
    that."""
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
            except OSError:  # it ended, or it is another user's
                continue
            if title.decode(errors="replace").startswith(_WORKERS):
                found.append(int(folder.name))
    return found
