"""A frozen linear layer with the adapters of k trials: one product with the base's weight for all
rows, batched products of low rank for each trial's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from dpo_train.quantization import whole_weight
from dpo_train.trainers.packed import kernels
from dpo_train.trainers.packed.forward import AUTOCAST


@dataclass(frozen=True)
class Adapters:
    """Of one layer and k trials, each times the root of its trial's scale: a product of the two
    halves then has the scale, and so has each half's gradient, up to one more root.

    Gradients are added to `a_gradient` and `b_gradient`, in float32.
    """

    a: Tensor
    """(k, rank, inputs)"""
    b: Tensor
    """(k, rank, outputs): PEFT's B, transposed."""
    a_gradient: Tensor
    b_gradient: Tensor


def compute_dtype(device: str) -> torch.dtype:
    """The type in which adapters compute on a kind of device."""
    return AUTOCAST.get(device, torch.float32)


class StackedLinear:
    """In place of a linear layer's `forward`; without adapters it is the base's own."""

    def __init__(self, layer: nn.Linear) -> None:
        self._layer = layer
        self.adapters: Adapters | None = None
        layer.forward = self  # type: ignore[method-assign,assignment]

    def __call__(self, x: Tensor) -> Tensor:
        """x: (k, N, inputs)"""
        layer, adapters = self._layer, self.adapters
        if adapters is None:
            return linear(x, whole_weight(layer), layer.bias)
        y: Tensor = _Adapted.apply(x, adapters.a, layer, adapters)  # type: ignore[no-untyped-call]
        return y

    def remove(self) -> None:
        del self._layer.forward


class _Adapted(torch.autograd.Function):
    """y[t] = x[t] W^T + bias + (x[t] A[t]^T) B[t]^T (LoRA, arXiv:2106.09685 eq. 3).

    The low-rank states are kept as (k, rank, N): products with a result that is wide, not `rank`
    narrow, are up to four times as fast on a CPU. Gradients of A and B go straight to where they
    are summed; a stays an input so that the first layer, whose x has no gradient, gets a node. A
    quantised weight is made whole for each direction.
    """

    # autograd hands the inputs over one by one, behind its own context.
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, a: Tensor, layer: nn.Linear, adapters: Adapters
    ) -> Tensor:
        y = linear(x, whole_weight(layer), layer.bias)
        x_low = x.to(a.dtype)
        low = torch.bmm(a, x_low.transpose(1, 2))
        y = _plus_wide(y, low, adapters.b)
        ctx.save_for_backward(x_low, low)
        ctx.layer, ctx.adapters, ctx.x_dtype = layer, adapters, x.dtype
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, None]:  # type: ignore[override]
        x, low = ctx.saved_tensors
        adapters: Adapters = ctx.adapters
        slope = gradient.to(low.dtype)
        low_slope = torch.bmm(adapters.b, slope.transpose(1, 2))
        _add_product(adapters.b_gradient, low, slope)
        _add_product(adapters.a_gradient, low_slope, x)
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        weight = whole_weight(ctx.layer).to(gradient.dtype)
        x_slope = _plus_wide(gradient @ weight, low_slope, adapters.a)
        return x_slope.to(ctx.x_dtype), None, None, None


def _plus_wide(total: Tensor, low: Tensor, half: Tensor) -> Tensor:
    """total + low^T half, in place where it can be; (k, N, wide), (k, rank, N), (k, rank, wide)."""
    is_small = low.shape[1] <= kernels.MOST_RANK
    if kernels.can_run(total) and total.dtype == low.dtype and is_small:
        return kernels.add_low_rank_(total, low, half)
    if total.dtype == low.dtype:
        return total.baddbmm_(low.transpose(1, 2), half)
    return total.add_(torch.bmm(low.transpose(1, 2), half))


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Adds left right to the float32 total. On a CPU a strided one would get its products one by
    one."""
    if total.is_cuda and left.dtype != torch.float32:
        torch.baddbmm(total, left, right, out_dtype=torch.float32, out=total)
    elif total.dtype == left.dtype and total.is_contiguous():
        total.baddbmm_(left, right)
    else:
        total.add_(torch.bmm(left, right))
