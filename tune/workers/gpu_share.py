"""Checks whether a trial took more of a GPU's memory than its fraction of the GPU."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tune.config.schema import SearchConfig


def overfull(config: SearchConfig, report: Mapping[str, float]) -> str:
    """Return an error if a trial took more memory than its fraction of a GPU; empty if not.

    A GPU's memory has no limit per process, so a trial that takes more than its share leaves too
    little for the others.
    """
    share, total = config.resources.gpus, report.get("device_memory_gb", 0.0)
    took = report.get("peak_memory_gb", 0.0)
    if config.trainer != "trl" or not 0 < share < 1 or took <= share * total:
        return ""
    fit = max(1, int(total / took))
    return (
        f"resources.gpus: a trial took {took:.1f} GB, but {share:g} of this GPU is "
        f"{share * total:.1f} of {total:.1f} GB; {fit} would fit: type "
        f"`--set resources.gpus={math.floor(1000 / fit) / 1000:g} --name NEW`"
    )
