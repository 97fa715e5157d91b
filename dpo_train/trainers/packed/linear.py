"""A frozen linear layer with the adapters of k trials: one product with the base's weight for all
rows, batched products of low rank for each trial's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


@dataclass(frozen=True)
class Adapters:
    """Of one layer and k trials; gradients are added to `a_gradient` and `b_gradient`."""

    a: Tensor
    """(k, rank, inputs)"""
    b: Tensor
    """(k, rank, outputs): PEFT's B, transposed."""
    a_gradient: Tensor
    b_gradient: Tensor
    scale: Tensor
    """(k, 1, 1)"""


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
            return linear(x, layer.weight, layer.bias)
        y: Tensor = _Adapted.apply(x, adapters.a, layer.weight, layer.bias, adapters)  # type: ignore[no-untyped-call]
        return y

    def remove(self) -> None:
        del self._layer.forward


class _Adapted(torch.autograd.Function):
    """y[t] = x[t] W^T + bias + scale[t] (x[t] A[t]^T) B[t]^T (LoRA, arXiv:2106.09685 eq. 3).

    The low-rank states are kept as (k, rank, N): products with a result that is wide, not `rank`
    narrow, are up to four times as fast on a CPU. Gradients of A and B go straight to where they
    are summed; a stays an input so that the first layer, whose x has no gradient, gets a node.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, a: Tensor, weight: Tensor, bias: Tensor | None, adapters: Adapters
    ) -> Tensor:
        y = linear(x, weight, bias)
        device = x.device.type
        mixed = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if mixed else a.dtype
        x_low = x.to(dtype)
        low = torch.bmm(a.to(dtype), x_low.transpose(1, 2)).mul_(adapters.scale.to(dtype))
        y = _plus_product(y, low.transpose(1, 2), adapters.b.to(dtype))
        ctx.save_for_backward(x_low, low, weight)
        ctx.adapters, ctx.x_dtype = adapters, x.dtype
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, None, None]:  # type: ignore[override]
        x, low, weight = ctx.saved_tensors
        adapters: Adapters = ctx.adapters
        slope = gradient.to(low.dtype)
        low_slope = torch.bmm(adapters.b.to(low.dtype), slope.transpose(1, 2))
        low_slope.mul_(adapters.scale.to(low.dtype))
        _plus_product(adapters.b_gradient, low, slope)
        _plus_product(adapters.a_gradient, low_slope, x)
        if not ctx.needs_input_grad[0]:
            return None, None, None, None, None
        x_slope = gradient @ weight.to(gradient.dtype)
        x_slope = _plus_product(x_slope, low_slope.transpose(1, 2), adapters.a.to(low.dtype))
        return x_slope.to(ctx.x_dtype), None, None, None, None


def _plus_product(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """total + left @ right, in place. A strided total would get its products one by one."""
    if total.dtype == left.dtype and total.is_contiguous():
        return total.baddbmm_(left, right)
    return total.add_(torch.bmm(left, right))
