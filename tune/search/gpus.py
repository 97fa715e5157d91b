"""The GPUs of this machine, and what a trial needs of them. It does without torch, which is slow to
import.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from dpo_train.errors import InputError

_LEAST_CAPABILITY = 8.0
"""The compute capability of Ampere, the first with bfloat16, in which we compute on GPUs."""
_QUERY = "index,uuid,name,driver_version,compute_cap,memory.free,memory.total"


@dataclass(frozen=True)
class Gpu:
    """A GPU as its driver describes it. Numbers that the driver does not know are NaN."""

    index: str
    uuid: str
    name: str
    driver: str
    capability: float
    free: float
    """GB."""
    total: float
    """GB."""

    def __str__(self) -> str:
        memory = "" if math.isnan(self.total) else f"{self.free:.1f} of {self.total:.1f} GB free, "
        return f"{self.name}: {memory}compute capability {self.capability}, driver {self.driver}"


def visible_gpus() -> list[Gpu]:
    """Return the GPUs that this process may use; [] without a driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    gpus = [_gpu(line) for line in done.stdout.splitlines() if line.count(",") >= 6]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or not gpus:
        return gpus
    found = []
    for name in filter(None, map(str.strip, visible.split(","))):
        # For a slice of a GPU (MIG) the driver lists the whole GPU, and the slice's name does not
        # say which one, so we take the first.
        is_slice = name.startswith("MIG-")
        named = [g for g in gpus if is_slice or g.index == name or g.uuid.startswith(name)]
        if not named:
            break  # CUDA itself ignores this name and all after it
        found.append(named[0])
    return found


def c_compiler() -> str | None:
    """Return the compiler that Triton will use, found by Triton's own rule."""
    return os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")


def refuse_unfit(gpus_of_a_trial: float) -> None:
    """Raise InputError if this machine has too few GPUs for a trial, or none that is suitable."""
    gpus = visible_gpus()
    advice = "type `--set resources.gpus=0` to use the CPU"
    if gpus_of_a_trial > len(gpus):
        raise InputError(
            f"resources.gpus: a trial wants {gpus_of_a_trial:g}, this machine has {len(gpus)}; "
            f"{advice}, or set RAY_ADDRESS to a cluster that has GPUs"
        )
    for gpu in gpus:
        if gpu.capability < _LEAST_CAPABILITY:
            raise InputError(
                f"resources.gpus: {gpu.name} has compute capability {gpu.capability} and no "
                f"bfloat16; choose GPUs of {_LEAST_CAPABILITY} (Ampere) or newer with "
                f"CUDA_VISIBLE_DEVICES, or {advice}"
            )
    if c_compiler() is None:
        raise InputError(
            "resources.gpus: there is no C compiler, which Triton needs to build its kernels; type "
            "`apt-get install gcc`, or set CC"
        )
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        raise InputError(
            f"resources.gpus: there is no {header}, which Triton needs to build its kernels; type "
            "`apt-get install python3-dev`"
        )


def _gpu(line: str) -> Gpu:
    index, uuid, name, driver, capability, free, total = map(str.strip, line.split(",", 6))
    memory = (_number(mebibytes) * 2**20 / 1e9 for mebibytes in (free, total))
    return Gpu(index, uuid, name, driver, _number(capability), *memory)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:  # [N/A]
        return math.nan
