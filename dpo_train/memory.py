"""The memory of this machine and of this process: what is free, what a pass keeps, what a process
may take. Knows no trainer and no Ray.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

SAFE_SHARE = 0.65
"""The share of a machine's memory up to which a search takes what it finds free."""
MOST_SHARE = 0.85
"""The share up to which it takes half of what is free, where others use much of the memory."""
CPU_ALLOCATOR_FACTOR = 1.5
"""What glibc's allocator holds for each byte of tensors that a pass keeps. The holes between
tensors of different sizes took 45 % on top, measured on SmolLM2-135M (benchmarks/RESULTS.md)."""
GIVEN_BACK_ALLOCATOR_FACTOR = 1.15
"""The same where freed memory goes back at once, as `give_back_at_once` has it."""
GPU_ALLOCATOR_FACTOR = 1.15
"""The same of torch's allocator on a GPU; not measured yet."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Of glibc's mallopt(3)."""
_LARGER_TENSOR = 1 << 20
"""Bytes from which on memory goes back at once."""

_OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "out of memory",  # of CUDA, of HIP and of Triton
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # no memory was left for the handle's workspace
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_NOT_INITIALIZED",
    "cudaErrorMemoryAllocation",
    "std::bad_alloc",
    "Cannot allocate memory",
    "unable to mmap",
)


@dataclass(frozen=True)
class MemoryBounds:
    """What the processes of one search may take on one machine."""

    host_bytes: int | None = None
    """Free memory of the machine, for all `processes` together; None if it isn't bounded."""
    processes: int = 1
    """How many processes train there at once. The weights that all map are counted once."""
    device_share: float = 1.0
    """The share of the GPU that this process may take."""
    most_tokens: int | None = None
    """The most tokens of a pass, where one with more ended a process for lack of memory."""


NO_BOUNDS = MemoryBounds()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, by its type or by the words of torch, CUDA,
    cuBLAS, cuDNN or Triton, which raise a plain RuntimeError."""
    import torch  # slow to import

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _OUT_OF_MEMORY)


def kept_bytes(forward: Callable[[], T], apart: Iterable[Tensor] = ()) -> tuple[T, int]:
    """What `forward` returns, and the bytes of the tensors that it keeps for a backward.

    Tensors that share memory count once; the memory of those in `apart` (weights) doesn't count.
    """
    import torch  # slow to import

    others = {tensor.untyped_storage().data_ptr() for tensor in apart}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in others:
            kept[storage.data_ptr()] = storage.nbytes()
        # Not the tensor itself: a circle of references would hold the pass for ever.
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = forward()
    return result, sum(kept.values())


def mapped_bytes(model: Any) -> int:
    """Of a model's weights, those that all processes of a machine map from its file on a CPU:
    quantised ones each process has made for itself."""
    return sum(weight.nbytes for weight in model.parameters() if weight.is_floating_point())


def give_back() -> None:
    """Returns freed memory to the system: the allocators keep what a large pass took."""
    import torch  # slow to import

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only glibc has it
    if trim is not None:
        trim(0)


def allocator_factor(device: str, checkpointed: bool) -> float:
    """What the allocator holds for each byte of tensors that a pass keeps; `checkpointed`: whether
    layers are computed again in the backward."""
    if device == "cuda":
        return GPU_ALLOCATOR_FACTOR
    return GIVEN_BACK_ALLOCATOR_FACTOR if checkpointed else CPU_ALLOCATOR_FACTOR


def give_back_at_once() -> None:
    """From now on glibc returns the memory of each larger tensor when it is freed.

    Of what is smaller than 32 MB it otherwise keeps all for later. Layers that are computed again
    leave holes of many sizes, which took more than the tensors themselves (benchmarks/RESULTS.md).
    """
    allocator_options = {_TRIM_THRESHOLD: _LARGER_TENSOR, _MMAP_THRESHOLD: _LARGER_TENSOR}
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # only glibc has these options
    if mallopt is not None:
        for option, size in allocator_options.items():
            mallopt(option, size)


def own_bytes() -> int:
    """Resident memory of this process that it shares with no other."""
    return resident_bytes("self")


def resident_bytes(process: int | str) -> int:
    """Resident memory of a process that it shares with no other; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def free_memory_bytes(
    safe: float = SAFE_SHARE, most: float = MOST_SHARE, root: Path = Path("/")
) -> int:
    """How much more the processes of a search may take on this machine: what is free until the
    share `safe` of its memory is in use, or half of what is free until `most` is, whichever is
    more. Where control groups of this process have limits, the tightest of all decides."""
    return max(
        0,
        min(
            max(int(safe * limit) - used, (int(most * limit) - used) // 2)
            for limit, used in _limits(root)
        ),
    )


def memory_limit_bytes(root: Path = Path("/")) -> int:
    """The memory of this machine, or what the control groups of this process allow of it."""
    return min(limit for limit, _ in _limits(root))


def memory_used_bytes(root: Path = Path("/")) -> int:
    """What is in use of `memory_limit_bytes`, without the caches that the system can drop."""
    return min(_limits(root))[1]


def kernel_kills() -> int:
    """How many processes of this machine the kernel has killed for lack of memory."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))


def _limits(root: Path) -> list[tuple[int, int]]:
    """(limit, used) in bytes, of the machine first, then of each control group that has a limit."""
    lines = (root / "proc/meminfo").read_text().splitlines()
    known = {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines}
    total = known["MemTotal"]
    return [(total, total - known["MemAvailable"]), *_group_limits(root)]


def _group_limits(root: Path) -> Iterator[tuple[int, int]]:
    """Of the control groups of this process up to the root, of version 2 and of version 1."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in groups:
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            mount, files = root / "sys/fs/cgroup", ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            mount = root / "sys/fs/cgroup/memory"
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        group = mount / name.strip("/")
        for folder in (group, *group.parents):
            try:
                limit, used = ((folder / file).read_text().strip() for file in files)
                if limit != "max" and int(limit) < 1 << 60:  # version 1 writes a huge number
                    yield int(limit), int(used) - _dropped(folder / "memory.stat")
            except OSError:  # the root has no limit; in a container its path may not exist
                pass
            if folder == mount:
                break


def _dropped(stat: Path) -> int:
    """The file caches of a control group, which the system drops when memory is short."""
    lines = stat.read_text().splitlines()
    names = ("inactive_file ", "active_file ", "total_inactive_file ", "total_active_file ")
    found = {line.split()[0]: int(line.split()[1]) for line in lines if line.startswith(names)}
    whole = [value for name, value in found.items() if name.startswith("total_")]
    return sum(whole or found.values())
