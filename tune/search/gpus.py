"""The GPUs of this machine, and what a trial needs of them; without torch, slow to import."""

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
"""Of Ampere, the first with bfloat16, in which a GPU computes here."""
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
    """Those that this process may use; none where there is no driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    there = [_gpu(line) for line in told.stdout.splitlines() if line.count(",") >= 6]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or not there:
        return there
    found = []
    for name in filter(None, map(str.strip, visible.split(","))):
        # Of a part of a GPU (MIG) the driver lists its whole; which one is not said by its name.
        is_part = name.startswith("MIG-")
        named = [g for g in there if is_part or g.index == name or g.uuid.startswith(name)]
        if not named:
            break  # CUDA itself takes no more from here on
        found.append(named[0])
    return found


def c_compiler() -> str | None:
    """The compiler that Triton will take, by its own rule."""
    return os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")


def refuse_unfit(wanted: float) -> None:
    """Raises InputError if this machine can't give a trial so many GPUs, or not any that fits."""
    there = visible_gpus()
    advice = "type `--set resources.gpus=0` for the CPU"
    if wanted > len(there):
        raise InputError(
            f"resources.gpus: a trial wants {wanted:g}, this machine has {len(there)}; {advice}, "
            "or set RAY_ADDRESS to a cluster that has some"
        )
    for gpu in there:
        if gpu.capability < _LEAST_CAPABILITY:
            raise InputError(
                f"resources.gpus: {gpu.name} has compute capability {gpu.capability}, without "
                f"bfloat16; give GPUs of {_LEAST_CAPABILITY} (Ampere) or newer by "
                f"CUDA_VISIBLE_DEVICES, or {advice}"
            )
    if c_compiler() is None:
        raise InputError(
            "resources.gpus: no C compiler is here, with which Triton builds its kernels when a "
            "trial begins; type `apt-get install gcc`, or set CC"
        )
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        raise InputError(
            f"resources.gpus: {header} is not here, which Triton needs to build its kernels when a "
            "trial begins; type `apt-get install python3-dev`"
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
