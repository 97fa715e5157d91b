"""Why a worker's process died, as far as Ray, the kernel and the error itself say it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray import cloudpickle
from ray.exceptions import OutOfMemoryError

from dpo_train.errors import DeviceFailed
from dpo_train.memory import kernel_kills
from tune.errors import EngineOutOfMemory, GpuFailed


def last_error(trial: Any) -> str:
    """What Ray Tune was told of a trial's last failure, empty if nothing.

    Tune appends the errors of a trial to one file. Its own `get_error` reads a copy, which is made
    later.
    """
    file = trial.error_file
    text = Path(file).read_text() if file and Path(file).exists() else ""
    return text.rpartition("Failure # ")[2]


def why_given_up(trial: Any) -> str:
    """The last line of what a trial raised, or that its process died, of which Ray says less."""
    lines = last_error(trial).strip().splitlines()
    return lines[-1] if any(line.startswith("Traceback") for line in lines) else "its process died"


def out_of_memory_reason(trial: Any, kills_before: int) -> str:
    """Says that a trial's process, or its engine's, died for lack of memory; empty if it didn't.

    `kills_before`: `kernel_kills()` some time before. It counts on this node alone; of another
    node the kernel's kills are only known where the trial's own process lived to see them.
    """
    said = last_error(trial)
    if EngineOutOfMemory.__name__ in said:
        return "its engine ran out of memory and was ended"
    if OutOfMemoryError.__name__ in said:
        return "Ray's memory monitor ended its process"
    if kernel_kills() > kills_before:
        return "its process ran out of memory and was ended by the kernel"
    return ""


def device_failure(trial: Any) -> DeviceFailed | None:
    """The failure of a GPU that was a trial's last error: GpuFailed if it is known which GPU."""
    said = last_error(trial)
    if not any(f"{kind.__name__}: " in said for kind in (DeviceFailed, GpuFailed)):
        return None  # the error that Tune pickled may be an earlier one
    raised = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    cause = getattr(raised, "cause", None)
    return cause if isinstance(cause, DeviceFailed) else None


def is_memory_monitors(error: BaseException | None) -> bool:
    """Whether Ray's memory monitor is behind an error that ended Ray Tune: of a trial's process
    that it ended, Tune knows no more than that this was unexpected."""
    while error is not None:
        if isinstance(error, OutOfMemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False
