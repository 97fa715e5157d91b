"""A frozen linear layer with the adapters of k trials: one product with the base's weight for the
tokens of all trials, products of low rank for those of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from dpo_train.quantization import whole_weight
from dpo_train.trainers.packed import kernels
from dpo_train.trainers.packed.forward import AUTOCAST

Counts = tuple[int, ...]


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
        self.token_counts: tuple[int, ...] = ()
        """The tokens of each trial in x, where x is one row of all of them."""
        layer.forward = self  # type: ignore[method-assign,assignment]

    def __call__(self, x: Tensor) -> Tensor:
        """x: (k, N, inputs), or (1, T, inputs) with the T tokens of k trials behind one another."""
        layer, adapters = self._layer, self.adapters
        if adapters is None:
            return linear(x, whole_weight(layer), layer.bias)
        counts = self.token_counts if len(x) != len(adapters.a) else ()
        y: Tensor = _Adapted.apply(x, adapters.a, layer, adapters, counts)  # type: ignore[no-untyped-call]
        return y

    def remove(self) -> None:
        del self._layer.forward


class _Adapted(torch.autograd.Function):
    """y[t] = x[t] W^T + bias + (x[t] A[t]^T) B[t]^T (LoRA, arXiv:2106.09685 eq. 3).

    The product with W is one for all trials. Those of low rank are one batched product where each
    trial has as many tokens (`counts` is empty), else one for each trial.

    The low-rank states are kept as (k, rank, N): products with a result that is wide, not `rank`
    narrow, are up to four times as fast on a CPU. Gradients of A and B go straight to where they
    are summed; a stays an input so that the first layer, whose x has no gradient, gets a node. A
    quantised weight is made whole for each direction.
    """

    # autograd hands the inputs over one by one, behind its own context.
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, a: Tensor, layer: nn.Linear, adapters: Adapters, counts: Counts
    ) -> Tensor:
        y = linear(x, whole_weight(layer), layer.bias)
        x_low = x.to(a.dtype)
        lows = [
            torch.bmm(a_of_trial, x_of_trial.transpose(1, 2))
            for a_of_trial, x_of_trial in zip(
                _halves(a, counts), _tokens(x_low, counts), strict=True
            )
        ]
        _add_wide(y, lows, adapters.b, counts)
        ctx.save_for_backward(x_low, *lows)
        ctx.layer, ctx.adapters, ctx.x_dtype, ctx.counts = layer, adapters, x.dtype, counts
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, None, None]:  # type: ignore[override]
        x, *lows = ctx.saved_tensors
        adapters: Adapters = ctx.adapters
        counts: Counts = ctx.counts
        slope = gradient.to(x.dtype)
        low_slopes = []
        for low, x_of_trial, slope_of_trial, b, a_gradient, b_gradient in zip(
            lows,
            _tokens(x, counts),
            _tokens(slope, counts),
            _halves(adapters.b, counts),
            _halves(adapters.a_gradient, counts),
            _halves(adapters.b_gradient, counts),
            strict=True,
        ):
            low_slope = torch.bmm(b, slope_of_trial.transpose(1, 2))
            _add_product(b_gradient, low, slope_of_trial)
            _add_product(a_gradient, low_slope, x_of_trial)
            low_slopes.append(low_slope)
        if not ctx.needs_input_grad[0]:
            return None, None, None, None, None
        weight = whole_weight(ctx.layer).to(gradient.dtype)
        x_slope = gradient @ weight
        _add_wide(x_slope, low_slopes, adapters.a, counts)
        return x_slope.to(ctx.x_dtype), None, None, None, None


def _tokens(states: Tensor, counts: Counts) -> Sequence[Tensor]:
    """(1, T, wide) as one (1, N, wide) a trial; (k, N, wide) as it is, if `counts` is empty."""
    return states.split(list(counts), dim=1) if counts else [states]


def _halves(half: Tensor, counts: Counts) -> Sequence[Tensor]:
    """(k, rank, wide) as one (1, rank, wide) a trial; as it is, if `counts` is empty."""
    return half.split(1) if counts else [half]


def _add_wide(total: Tensor, lows: Sequence[Tensor], half: Tensor, counts: Counts) -> None:
    """Adds low^T half of each trial to its tokens of the total."""
    for part, low, own in zip(_tokens(total, counts), lows, _halves(half, counts), strict=True):
        _add_wide_product(part, low, own)


def _add_wide_product(total: Tensor, low: Tensor, half: Tensor) -> None:
    """Adds low^T half to the total; (k, N, wide), (k, rank, N), (k, rank, wide)."""
    is_small = low.shape[1] <= kernels.MOST_RANK
    if kernels.can_run(total) and total.dtype == low.dtype and is_small:
        kernels.add_low_rank_(total, low, half)
    elif total.dtype == low.dtype:
        total.baddbmm_(low.transpose(1, 2), half)
    else:
        total.add_(torch.bmm(low.transpose(1, 2), half))


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Adds left right to the float32 total. On a CPU a strided one would get its products one by
    one."""
    if total.is_cuda and left.dtype != torch.float32:
        torch.baddbmm(total, left, right, out_dtype=torch.float32, out=total)
    elif total.dtype == left.dtype and total.is_contiguous():
        total.baddbmm_(left, right)
    else:
        total.add_(torch.bmm(left, right))
