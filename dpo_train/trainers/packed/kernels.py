"""Triton kernels of the packed pass on a GPU: one pass over memory in place of torch's several.

Triton comes with torch where torch has CUDA. Elsewhere the callers compute the same with torch.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor

_WORDS = 4096
"""Logits that a program reads at once."""
_ROWS, _COLUMNS = 64, 128
"""The tile of the total to which a program adds: the fastest of eight shapes on an H200."""


MOST_RANK = 128
"""The largest rank that is supported. A tile of a larger one needs more shared memory than many
GPUs have."""


def can_run(x: Tensor) -> bool:
    """Returns whether these kernels can compute with x."""
    return x.is_cuda and _kernels() is not None


def to_logps_(logits: Tensor, targets: Tensor, logps: Tensor, wants_gradient: bool) -> None:
    """Writes the log-softmax at the targets into `logps`, computed in float32.

    logits: (M, V); with `wants_gradient` they are overwritten by the gradient of each log-prob by
    its logits, which is 1 at the target minus the softmax. targets, logps: (M,).
    """
    score, _ = _kernels()
    score[(len(logits),)](
        logits,
        targets,
        logps,
        logits.stride(0),
        logits.shape[1],
        wants_gradient,
        _WORDS,
        num_warps=8,
    )


def add_low_rank_(total: Tensor, low: Tensor, matrix: Tensor) -> Tensor:
    """Adds low^T matrix to `total` in place, summed in float32, and returns it.

    total: (k, N, width), contiguous; low: (k, rank, N); matrix: (k, rank, width). All have one
    type, and the rank is at most MOST_RANK.
    """
    k, tokens, width = total.shape
    rank = low.shape[1]
    _, add = _kernels()
    grid = (-(-tokens // _ROWS), -(-width // _COLUMNS), k)
    padded = max(16, 1 << (rank - 1).bit_length())
    add[grid](
        total, low, matrix, tokens, width, rank, *total.stride()[:2], *low.stride(),
        *matrix.stride(), padded, _ROWS, _COLUMNS, num_warps=4,
    )  # fmt: skip
    return total


@cache
def _kernels() -> Any:
    """Returns the compiled kernels, or None where there is no Triton."""
    try:
        import triton  # not everywhere
        import triton.language as tl  # not everywhere
    except ImportError:
        return None

    # A Triton kernel takes pointers, sizes and strides one by one.
    @triton.jit  # type: ignore[untyped-decorator]
    def score(logits, targets, logps, stride, words, GRADIENT: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
        row = tl.program_id(0).to(tl.int64)
        row_at = logits + row * stride
        target = tl.load(targets + row)
        # Each lane's largest logit and sum of exponentials, then those of all lanes together.
        top = tl.full([BLOCK], -1e30, tl.float32)
        total = tl.zeros([BLOCK], tl.float32)
        for start in range(0, words, BLOCK):
            word = start + tl.arange(0, BLOCK)
            logit = tl.load(row_at + word, mask=word < words, other=-1e30).to(tl.float32)
            higher = tl.maximum(top, logit)
            total = total * tl.exp(top - higher) + tl.exp(logit - higher)
            top = higher
        highest = tl.max(top, axis=0)
        log_total = highest + tl.log(tl.sum(total * tl.exp(top - highest), axis=0))
        tl.store(logps + row, tl.load(row_at + target).to(tl.float32) - log_total)
        # The gradient takes the place of the logits.
        if GRADIENT:
            for start in range(0, words, BLOCK):
                word = start + tl.arange(0, BLOCK)
                logit = tl.load(row_at + word, mask=word < words, other=-1e30).to(tl.float32)
                gradient = tl.where(word == target, 1.0, 0.0) - tl.exp(logit - log_total)
                tl.store(row_at + word, gradient.to(logits.dtype.element_ty), mask=word < words)

    @triton.jit  # type: ignore[untyped-decorator]
    def add(  # type: ignore[no-untyped-def]
        total, low, matrix, tokens, width, rank, total_k, total_n, low_k, low_r, low_n, matrix_k,
        matrix_r, matrix_w, RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    ):  # fmt: skip
        # This program's tile: trial k, tokens n, columns w; r are all ranks.
        k = tl.program_id(2).to(tl.int64)
        n = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]).to(tl.int64)
        w = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        r = tl.arange(0, RANK)
        left_at = low + k * low_k + r[None, :] * low_r + n * low_n
        left = tl.load(left_at, mask=(r[None, :] < rank) & (n < tokens), other=0.0)
        right_at = matrix + k * matrix_k + r[:, None] * matrix_r + w * matrix_w
        right = tl.load(right_at, mask=(r[:, None] < rank) & (w < width), other=0.0)
        at = total + k * total_k + n * total_n + w
        inside = (n < tokens) & (w < width)
        old = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        new = old + tl.dot(left, right)
        tl.store(at, new.to(total.dtype.element_ty), mask=inside)

    return score, add
