"""The memory of this machine and of this process: what is free, and what a pass keeps.

Knows no trainer and no Ray.
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
"""The share of a machine's memory up to which a search takes all that is free."""
MOST_SHARE = 0.85
"""The share up to which it takes half of what is free, if others already use much memory."""
CPU_ALLOCATOR_FACTOR = 1.5
"""Bytes that glibc's allocator holds for each byte of tensors that a pass keeps. The holes between
tensors of different sizes took 45 % on top, measured on SmolLM2-135M (benchmarks/RESULTS.md)."""
GIVEN_BACK_ALLOCATOR_FACTOR = 1.15
"""That factor after `give_back_at_once`, with which freed memory goes back to the system."""
GPU_ALLOCATOR_FACTOR = 1.15
"""That factor for torch's allocator on a GPU; not measured yet."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names of options of glibc's mallopt(3)."""
_LARGER_TENSOR = 1 << 20
"""The bytes from which a freed tensor's memory goes back at once."""

_OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "out of memory",  # said by CUDA, HIP and Triton
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # there was no memory for the handle's workspace
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_NOT_INITIALIZED",
    "cudaErrorMemoryAllocation",
    "std::bad_alloc",
    "Cannot allocate memory",
    "unable to mmap",
)


@dataclass(frozen=True)
class MemoryBounds:
    """The memory that the processes of one search may take on one machine."""

    host_bytes: int | None = None
    """Memory of the machine for all `processes` together; None means no bound."""
    processes: int = 1
    """How many processes train there at once. Weights that all of them map are counted once."""
    device_share: float = 1.0
    """The share of the GPU's memory that this process may take."""
    most_tokens: int | None = None
    """The most tokens of a pass, if a larger pass has ended a process for lack of memory."""


NO_BOUNDS = MemoryBounds()
"""The bounds of a process that has the machine for itself."""


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error says that memory ran out.

    torch, CUDA, cuBLAS, cuDNN and Triton may raise a plain RuntimeError, so we read its words.
    """
    import torch  # slow to import

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _OUT_OF_MEMORY)


def kept_bytes(forward: Callable[[], T], excluded: Iterable[Tensor] = ()) -> tuple[T, int]:
    """Returns the result of `forward` and the bytes of the tensors that it keeps for a backward.

    Tensors that share memory count once. The memory of `excluded` tensors (weights) doesn't count.
    """
    import torch  # slow to import

    not_counted = {tensor.untyped_storage().data_ptr() for tensor in excluded}
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in not_counted:
            kept[storage.data_ptr()] = storage.nbytes()
        # The tensor itself would make a cycle of references, and the pass would never be freed.
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        result = forward()
    return result, sum(kept.values())


def mapped_bytes(model: Any) -> int:
    """Returns the bytes of the weights that all processes of a machine map from the model's file.

    On a CPU these are all that are not quantised; each process quantises for itself.
    """
    return sum(weight.nbytes for weight in model.parameters() if weight.is_floating_point())


def give_back() -> None:
    """Returns freed memory to the system, because the allocators keep what a large pass took."""
    import torch  # slow to import

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only glibc has it
    if trim is not None:
        trim(0)


def allocator_factor(device: str, checkpointed: bool) -> float:
    """Returns how many bytes the allocator holds for each byte of tensors that a pass keeps.

    checkpointed: whether layers are computed again in the backward.
    """
    if device == "cuda":
        return GPU_ALLOCATOR_FACTOR
    return GIVEN_BACK_ALLOCATOR_FACTOR if checkpointed else CPU_ALLOCATOR_FACTOR


def give_back_at_once() -> None:
    """Makes glibc return the memory of each larger tensor when the tensor is freed.

    glibc keeps freed blocks of less than 32 MB for later. Layers that are computed again leave
    holes of many sizes, which took more memory than the tensors themselves
    (benchmarks/RESULTS.md), so we switch that off for the rest of the process.
    """
    allocator_options = {_TRIM_THRESHOLD: _LARGER_TENSOR, _MMAP_THRESHOLD: _LARGER_TENSOR}
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # only glibc has these options
    if mallopt is not None:
        for option, size in allocator_options.items():
            mallopt(option, size)


def own_bytes() -> int:
    """Returns the resident memory of this process that it shares with no other process."""
    return resident_bytes("self")


def resident_bytes(process: int | str) -> int:
    """Returns the resident memory that a process shares with no other; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def free_memory_bytes(
    safe: float = SAFE_SHARE, most: float = MOST_SHARE, root: Path = Path("/")
) -> int:
    """Returns how much more memory the processes of a search may take on this machine.

    It is what is free below the share `safe` of the memory, or half of what is free below the share
    `most`, whichever is more. If control groups of this process have limits, the tightest decides.
    """
    return max(
        0,
        min(
            max(int(safe * limit) - used, (int(most * limit) - used) // 2)
            for limit, used in _limits(root)
        ),
    )


def memory_limit_bytes(root: Path = Path("/")) -> int:
    """Returns the memory of this machine, or the limit of this process's control groups."""
    return min(limit for limit, _ in _limits(root))


def memory_used_bytes(root: Path = Path("/")) -> int:
    """Returns what is used of `memory_limit_bytes`, without caches that the system can drop."""
    return min(_limits(root))[1]


def kernel_kills() -> int:
    """Returns how many processes the kernel of this machine has killed for lack of memory."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))


def _limits(root: Path) -> list[tuple[int, int]]:
    """Returns (limit, used) in bytes, for the machine and for each control group with a limit."""
    lines = (root / "proc/meminfo").read_text().splitlines()
    known = {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines}
    total = known["MemTotal"]
    return [(total, total - known["MemAvailable"]), *_group_limits(root)]


def _group_limits(root: Path) -> Iterator[tuple[int, int]]:
    """Yields (limit, used) of this process's control groups up to the root, of versions 1 and 2."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in groups:
        # Where this group's files are, in either version.
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            mount, files = root / "sys/fs/cgroup", ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            mount = root / "sys/fs/cgroup/memory"
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        # The group and all above it. The root has no limit, and in a container its path may not
        # exist, so missing files are skipped.
        group = mount / name.strip("/")
        for folder in (group, *group.parents):
            try:
                limit, used = ((folder / file).read_text().strip() for file in files)
                if limit != "max" and int(limit) < 1 << 60:  # version 1 writes a huge number
                    yield int(limit), int(used) - _file_caches(folder / "memory.stat")
            except OSError:
                pass
            if folder == mount:
                break


def _file_caches(stat: Path) -> int:
    """Returns the file caches of a control group, which the system drops when memory is short."""
    lines = stat.read_text().splitlines()
    names = ("inactive_file ", "active_file ", "total_inactive_file ", "total_active_file ")
    found = {line.split()[0]: int(line.split()[1]) for line in lines if line.startswith(names)}
    whole = [value for name, value in found.items() if name.startswith("total_")]
    return sum(whole or found.values())
