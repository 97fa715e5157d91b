"""Finds out why a worker's process died, from Ray, the kernel and the error itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray import cloudpickle
from ray.exceptions import OutOfMemoryError

from dpo_train.errors import DeviceFailed
from dpo_train.memory import kernel_kills
from tune.errors import EngineOutOfMemory, GpuFailed


def last_error(trial: Any) -> str:
    """Return the text of a trial's last failure; empty if it had none.

    Tune appends the errors of a trial to one file. Its own `get_error` reads a copy that is made
    too late, so we read the file itself.
    """
    file = trial.error_file
    text = Path(file).read_text() if file and Path(file).exists() else ""
    return text.rpartition("Failure # ")[2]


def why_given_up(trial: Any) -> str:
    """Return the last line of a trial's traceback, or "its process died" if it has none."""
    lines = last_error(trial).strip().splitlines()
    return lines[-1] if any(line.startswith("Traceback") for line in lines) else "its process died"


def out_of_memory_reason(trial: Any, kills_before: int) -> str:
    """Return how a trial's process, or its engine, ran out of memory; empty if it did not.

    `kills_before` is an earlier value of `kernel_kills()`. That counts only on this node; a kill by
    another node's kernel is known only if the trial's own process survived and reported it.
    """
    error = last_error(trial)
    if EngineOutOfMemory.__name__ in error:
        return "its engine ran out of memory and was ended"
    if OutOfMemoryError.__name__ in error:
        return "Ray's memory monitor ended its process"
    if kernel_kills() > kills_before:
        return "its process ran out of memory and was ended by the kernel"
    return ""


def device_failure(trial: Any) -> DeviceFailed | None:
    """Return the error if a trial's last failure was a GPU's: GpuFailed if the GPU is known."""
    error = last_error(trial)
    if not any(f"{kind.__name__}: " in error for kind in (DeviceFailed, GpuFailed)):
        return None  # the error that Tune pickled may be an earlier one
    raised = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    cause = getattr(raised, "cause", None)
    return cause if isinstance(cause, DeviceFailed) else None


def is_memory_monitors(error: BaseException | None) -> bool:
    """Return whether an error that ended Ray Tune was caused by Ray's memory monitor.

    When the monitor ends a trial's process, Tune itself only reports an unexpected error.
    """
    while error is not None:
        if isinstance(error, OutOfMemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False
