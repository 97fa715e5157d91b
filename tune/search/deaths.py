"""Why a worker's process died, as far as Ray, the kernel and the error itself say it."""

from __future__ import annotations

from typing import Any

from ray.exceptions import OutOfMemoryError

from dpo_train.memory import kernel_kills
from tune.workers.engine_session import EngineOutOfMemory


def out_of_memory_reason(trial: Any, kills_before: int) -> str:
    """Says that a trial's process, or its engine's, died for lack of memory; empty if it didn't.

    `kills_before`: `kernel_kills()` some time before. It counts on this node alone; of another
    node the kernel's kills are only known where the trial's own process lived to see them.
    """
    # Ray Tune appends each error of a trial to one file.
    said = str(trial.get_error() or "").rpartition("Failure # ")[2]
    if EngineOutOfMemory.__name__ in said:
        return "its engine ran out of memory and was ended"
    if OutOfMemoryError.__name__ in said:
        return "Ray's memory monitor ended its process"
    if kernel_kills() > kills_before:
        return "its process ran out of memory and was ended by the kernel"
    return ""


def is_memory_monitors(error: BaseException | None) -> bool:
    """Whether Ray's memory monitor is behind an error that ended Ray Tune: of a trial's process
    that it ended, Tune knows no more than that this was unexpected."""
    while error is not None:
        if isinstance(error, OutOfMemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False
