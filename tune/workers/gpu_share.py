"""Whether a trial took more of a GPU's memory than the fraction that it asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tune.config.schema import SearchConfig


def overfull(config: SearchConfig, report: Mapping[str, float]) -> str:
    """What to say of a trial that took more memory than its fraction of a GPU; empty if none did.

    Memory can't be fenced in: where one takes more than its share, another will find none.
    """
    share, total = config.resources.gpus, report.get("device_memory_gb", 0.0)
    took = report.get("peak_memory_gb", 0.0)
    if config.trainer != "trl" or not 0 < share < 1 or took <= share * total:
        return ""
    fit = max(1, int(total / took))
    return (
        f"resources.gpus: a trial took {took:.1f} GB, and {share:g} of this GPU is "
        f"{share * total:.1f} of {total:.1f} GB; {fit} would fit: type "
        f"`--set resources.gpus={math.floor(1000 / fit) / 1000:g} --name NEW`"
    )
