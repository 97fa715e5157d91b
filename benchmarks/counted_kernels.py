"""Counts what operations on fake tensors would cost on a GPU: torch's own operations, and each
fused kernel as one read of its inputs and one write of its outputs. gpu_roofline.py runs them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

_RATES = {torch.bfloat16: 620e12, torch.float32: 52e12}
"""Operations per second that an H100 reaches in matrix products."""
_BANDWIDTH = 2.7e12
_START_SECONDS = 2e-6
_MOVES_NOTHING = {"_unsafe_view", "detach", "lift_fresh", "_local_scalar_dense", "is_same_size"}


class Counted(TorchDispatchMode):
    """Counts what the operations inside it would cost on a GPU, by kind of operation."""

    def __init__(self, words: int) -> None:
        """`words` is the size of the vocabulary, which identifies products of the head."""
        super().__init__()
        self._words = words
        self.launches: Counter[str] = Counter()
        self.operations: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.seconds: Any = Counter()  # of floats

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        library, name = function._schema.name.split("::")
        is_free = name in _MOVES_NOTHING or name.startswith(("empty", "new_empty"))
        if library != "aten" or function.is_view or is_free:
            return out
        read, written = tensors((args, kwargs)), tensors(out)
        if not read and not written:
            return out
        in_place = getattr(torch.ops.aten, name.rstrip("_"), None)  # has another's count
        count = flop_registry.get(function._overloadpacket) or flop_registry.get(in_place)
        operations = count(*args, **(kwargs or {}), out_val=out) if count else 0
        kind = "the rest"
        if operations:
            is_head = any(self._words in each.shape for each in (*read, *written))
            kind = "head" if is_head else "products" if "bmm" not in name else "adapters' products"
        self.add(kind, read, written, operations)
        return out

    def add(
        self, kind: str, read: Sequence[Tensor], written: Sequence[Tensor], operations: float = 0
    ) -> None:
        """Count one kernel."""
        moved = sum(map(size, read)) + sum(map(size, written))
        rate = _RATES.get(read[0].dtype if read else torch.float32, _RATES[torch.float32])
        self.launches[kind] += 1
        self.operations[kind] += int(operations)
        self.bytes[kind] += moved
        self.seconds[kind] += max(operations / rate, moved / _BANDWIDTH, _START_SECONDS)


def tensors(tree: Any) -> list[Tensor]:
    return [each for each in tree_leaves(tree) if isinstance(each, Tensor)]


def size(tensor: Tensor) -> int:
    """Return the bytes that a tensor stores. An expanded tensor repeats its bytes."""
    return min(tensor.nbytes, tensor.untyped_storage().nbytes())


class Kernel:
    """Replaces a compiled Triton kernel and counts its launches, by the arguments that it reads and
    writes."""

    def __init__(
        self,
        counted: Counted,
        kind: str,
        reads: Iterable[int],
        writes: Callable[[Sequence[Any]], Iterable[int]] | Iterable[int],
        operations: Callable[[Sequence[Any]], float] = lambda _: 0,
    ) -> None:
        self._counted, self._kind = counted, kind
        self._reads, self._writes, self._operations = reads, writes, operations

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return self._launch

    def _launch(self, *arguments: Any, **_: Any) -> None:
        writes = self._writes(arguments) if callable(self._writes) else self._writes
        read, written = ([arguments[n] for n in which] for which in (self._reads, writes))
        self._counted.add(self._kind, read, written, self._operations(arguments))


def ours(counted: Counted) -> tuple[Kernel, Kernel]:
    """Return the two kernels of `packed/kernels.py`, in its order."""

    def scored(arguments: Sequence[Any]) -> Iterable[int]:
        wants_slopes = arguments[5]
        return (0, 2) if wants_slopes else (2,)

    def added(arguments: Sequence[Any]) -> float:
        total, low = arguments[:2]
        return float(2.0 * total.numel() * low.shape[1])

    return (
        Kernel(counted, "head", (0, 1), scored),
        Kernel(counted, "adapters' products", (0, 1, 2), (0,), added),
    )


@contextmanager
def ligers(counted: Counted) -> Iterator[None]:
    """Replace Liger's kernels for norms, gated MLPs and rotary embeddings."""
    from liger_kernel.ops import rms_norm, rope, swiglu

    kind = "Liger's kernels"
    norm, slope = (
        Kernel(counted, kind, (2, 4), (0, 6)),
        Kernel(counted, kind, (0, 4, 7, 9), (2,)),
    )
    with (
        patch.object(rms_norm, "_rms_norm_forward_kernel", norm),
        patch.object(rms_norm, "_block_rms_norm_forward_kernel", norm),
        patch.object(rms_norm, "_rms_norm_backward_kernel", slope),
        patch.object(rms_norm, "_block_rms_norm_backward_kernel", slope),
        patch.object(swiglu, "_swiglu_forward_kernel", Kernel(counted, kind, (0, 1), (2,))),
        patch.object(swiglu, "_swiglu_backward_kernel", Kernel(counted, kind, (0, 1, 2), (1, 2))),
        patch.object(rope, "_triton_rope", Kernel(counted, kind, (0, 2, 4, 6), (0, 2))),
    ):
        yield


def flash_attention(counted: Counted) -> Callable[..., Tensor]:
    """Return a replacement for torch's scaled_dot_product_attention: one causal kernel each way,
    which reads grouped keys without copies."""

    def operations(q: Tensor, products: int) -> float:
        lanes, length = q.shape[0] * q.shape[1], q.shape[2]
        return products * 2.0 * lanes * length * length * q.shape[3] / 2

    class Flash(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # type: ignore[override]
            out, sums = torch.empty_like(q), q.new_empty(q.shape[:-1], dtype=torch.float32)
            counted.add("attention", [q, k, v], [out, sums], operations(q, 2))
            ctx.save_for_backward(q, k, v, out, sums)
            return out

        @staticmethod
        def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
            saved = ctx.saved_tensors
            slopes = tuple(torch.empty_like(each) for each in saved[:3])
            counted.add("attention", [slope, *saved], slopes, operations(saved[0], 5))
            return slopes

    def attention(q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
        out: Tensor = Flash.apply(*(each.to(torch.bfloat16) for each in (q, k, v)))  # type: ignore[no-untyped-call]
        return out

    return attention
