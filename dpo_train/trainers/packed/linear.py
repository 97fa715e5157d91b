"""A frozen linear layer with the adapters of k trials.

The tokens of all trials share one product with the base's weight. Each trial's own tokens get the
low-rank products of its adapter.
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
"""Tokens of each trial, whose sum is T; empty where all trials have N tokens."""


@dataclass(frozen=True)
class Adapters:
    """The adapters of k trials for one layer.

    Each matrix is multiplied by the square root of its trial's scale (alpha / r): so the product of
    A and B has the scale, and the gradient of each matrix has only its root.
    """

    a: Tensor
    """(k, rank, inputs)"""
    b: Tensor
    """(k, rank, outputs): PEFT's B, transposed."""
    a_gradient: Tensor
    """(k, rank, inputs), float32; a backward adds to it."""
    b_gradient: Tensor
    """(k, rank, outputs), float32; a backward adds to it."""
    token_counts: Counts = ()
    """Used where the tokens of all trials are one row."""


def compute_dtype(device: str) -> torch.dtype:
    """Returns the type in which adapters compute on a kind of device."""
    return AUTOCAST.get(device, torch.float32)


class StackedLinear:
    """Replaces the `forward` of a linear layer; without adapters it computes as the layer does."""

    def __init__(self, layer: nn.Linear) -> None:
        self._layer = layer
        self.adapters: Adapters | None = None
        layer.forward = self  # type: ignore[method-assign,assignment]

    def __call__(self, x: Tensor) -> Tensor:
        """Returns the layer's output for x with the adapters.

        x: (k, N, inputs), or (1, T, inputs) with the tokens of k trials one after the other.
        """
        layer, adapters = self._layer, self.adapters
        if adapters is None:
            return linear(x, whole_weight(layer), layer.bias)
        y: Tensor = _Adapted.apply(x, adapters.a, layer, adapters)  # type: ignore[no-untyped-call]
        return y

    def remove(self) -> None:
        """Gives the layer its own `forward` back."""
        del self._layer.forward


class _Adapted(torch.autograd.Function):
    """y[t] = x[t] W^T + bias + (x[t] A[t]^T) B[t]^T for trial t (LoRA, arXiv:2106.09685 eq. 3).

    All trials share the product with W. The low-rank products are one batched product where all
    trials have N tokens (`counts` is empty), and one product for each trial otherwise.

    The low-rank states have shape (k, rank, N): on a CPU a product with a wide result is up to four
    times as fast as one with a result that is `rank` narrow. The gradients of A and B are added to
    `Adapters` directly. `a` is an input all the same: the x of the first layer has no gradient, and
    autograd would skip its backward. A quantised weight is dequantised again in the backward.
    """

    # autograd passes the inputs one by one, after its own context.
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, a: Tensor, layer: nn.Linear, adapters: Adapters
    ) -> Tensor:
        """x: (k, N, inputs) or (1, T, inputs); a: (k, rank, inputs). Returns y, (.., outputs)."""
        counts = () if len(x) == len(a) else adapters.token_counts
        y = linear(x, whole_weight(layer), layer.bias)
        x_low = x.to(a.dtype)
        lows = [
            torch.bmm(a_of_trial, x_of_trial.transpose(1, 2))
            for a_of_trial, x_of_trial in zip(
                _matrices(a, counts), _tokens(x_low, counts), strict=True
            )
        ]
        _add_wide(y, lows, adapters.b, counts)
        ctx.save_for_backward(x_low, *lows)
        ctx.layer, ctx.adapters, ctx.x_dtype, ctx.counts = layer, adapters, x.dtype, counts
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, None]:  # type: ignore[override]
        """gradient: that of y. Adds those of A and B to `Adapters`; returns that of x."""
        x, *lows = ctx.saved_tensors
        adapters: Adapters = ctx.adapters
        counts: Counts = ctx.counts

        # The adapters' gradients, added where they are summed up.
        y_gradient = gradient.to(x.dtype)
        low_gradients = []
        for low, x_of_trial, y_gradient_of_trial, b, a_gradient, b_gradient in zip(
            lows,
            _tokens(x, counts),
            _tokens(y_gradient, counts),
            _matrices(adapters.b, counts),
            _matrices(adapters.a_gradient, counts),
            _matrices(adapters.b_gradient, counts),
            strict=True,
        ):
            low_gradient = torch.bmm(b, y_gradient_of_trial.transpose(1, 2))
            _add_product(b_gradient, low, y_gradient_of_trial)
            _add_product(a_gradient, low_gradient, x_of_trial)
            low_gradients.append(low_gradient)

        # The gradient of x, through the base's weight and through the adapters.
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        weight = whole_weight(ctx.layer).to(gradient.dtype)
        x_gradient = gradient @ weight
        _add_wide(x_gradient, low_gradients, adapters.a, counts)
        return x_gradient.to(ctx.x_dtype), None, None, None


def _tokens(states: Tensor, counts: Counts) -> Sequence[Tensor]:
    """Splits (1, T, width) into (1, N, width) for each trial, unless `counts` is empty."""
    return states.split(list(counts), dim=1) if counts else [states]


def _matrices(matrices: Tensor, counts: Counts) -> Sequence[Tensor]:
    """Splits (k, rank, width) into (1, rank, width) for each trial, unless `counts` is empty."""
    return matrices.split(1) if counts else [matrices]


def _add_wide(total: Tensor, lows: Sequence[Tensor], matrices: Tensor, counts: Counts) -> None:
    """Adds low^T matrix of each trial to the trial's tokens in `total`.

    total: (k, N, width) and lows: one (k, rank, N), or total: (1, T, width) and lows: (1, rank, N)
    for each trial. matrices: (k, rank, width).
    """
    for tokens, low, matrix in zip(
        _tokens(total, counts), lows, _matrices(matrices, counts), strict=True
    ):
        _add_wide_product(tokens, low, matrix)


def _add_wide_product(total: Tensor, low: Tensor, matrix: Tensor) -> None:
    """Adds low^T matrix to `total`.

    total: (k, N, width); low: (k, rank, N); matrix: (k, rank, width).
    """
    is_small = low.shape[1] <= kernels.MOST_RANK
    if kernels.can_run(total) and total.dtype == low.dtype and is_small:
        kernels.add_low_rank_(total, low, matrix)
    elif total.dtype == low.dtype:
        total.baddbmm_(low.transpose(1, 2), matrix)
    else:
        total.add_(torch.bmm(low.transpose(1, 2), matrix))


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Adds left @ right to the float32 `total`.

    total: (k, rank, width); left: (k, rank, N); right: (k, N, width). On a CPU `baddbmm_` is slow
    for a strided `total`, as it computes one product after the other, so we add a whole product.
    """
    if total.is_cuda and left.dtype != torch.float32:
        torch.baddbmm(total, left, right, out_dtype=torch.float32, out=total)
    elif total.dtype == left.dtype and total.is_contiguous():
        total.baddbmm_(left, right)
    else:
        total.add_(torch.bmm(left, right))
