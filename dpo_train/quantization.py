"""Stores the linear layers of a LoRA's frozen base in 4 or 8 bits a weight, through bitsandbytes
(QLoRA, arXiv:2305.14314). Embeddings, norms and the output layer are not quantised.

All trainers compute with the weights that bitsandbytes dequantises, so their results agree. We do
not use its 8-bit product, because it rounds a layer's input to float16 and then to 8 bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import BitsAndBytesConfig
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

Kind = Literal["nf4", "int8"]

_BLOCK, _SCALES = 64, 256
"""Weights that share an 8-bit scale in nf4, and scales that share a scale of the second level."""


class QuantizedLinear(nn.Linear):
    """A linear layer whose `weight` is bitsandbytes' parameter, packed in bytes."""

    def __init__(self, layer: Any, weight: Any, dtype: torch.dtype) -> None:
        """Take sizes and bias of `layer`, and the packed `weight`, which dequantises to `dtype`."""
        nn.Module.__init__(self)  # nn.Linear would allocate a weight
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = weight, layer.bias
        self.dtype = dtype

    def whole_weight(self) -> Tensor:
        """Return the dequantised weight, shape (outputs, inputs)."""
        import bitsandbytes.functional as bnb  # an extra

        weight: Any = self.weight
        if weight.dtype == torch.int8:
            matrix: Tensor = (weight.data * (weight.SCB[:, None] / 127)).to(self.dtype)
        else:
            matrix = bnb.dequantize_4bit(weight.data, weight.quant_state)
        return matrix

    def forward(self, x: Tensor) -> Tensor:
        """Return x W^T + bias, shape (..., outputs), of x with shape (..., inputs)."""
        product: Tensor = _Product.apply(x, self)  # type: ignore[no-untyped-call]
        return product


class _Product(torch.autograd.Function):
    """y = x W^T + bias. Forward and backward each dequantise the weight, and do not keep it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:  # type: ignore[override]
        ctx.layer, ctx.x_dtype = layer, x.dtype
        return linear(x, layer.whole_weight(), layer.bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        weight = ctx.layer.whole_weight().to(gradient.dtype)
        return (gradient @ weight).to(ctx.x_dtype), None


def whole_weight(layer: nn.Linear) -> Tensor:
    """Return the weight of a frozen linear layer, dequantised if it is quantised."""
    return layer.whole_weight() if isinstance(layer, QuantizedLinear) else layer.weight


def quantization_config(kind: Kind) -> BitsAndBytesConfig:
    """Return the setting with which `from_pretrained` quantises each weight as it reads it."""
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )


def take_over(model: Any) -> None:
    """Replace bitsandbytes' layers by ours in a quantised model.

    Problem: TRL rounds the adapter of a quantised model to bfloat16, which loses small updates. So
    we remove the marks by which libraries recognise such a model.
    """
    import bitsandbytes  # an extra

    own = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)
    dtype = model.dtype
    _replace(model, lambda _, layer: layer.weight if isinstance(layer, own) else None, dtype)
    model.is_loaded_in_4bit = model.is_loaded_in_8bit = False
    model.requires_grad_(False)


def take_over_without_values(model: Any, kind: Kind) -> None:
    """Replace the linear layers of a model without values by layers that hold as many bytes."""
    excluded = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)

    def packed(name: str, layer: Any) -> Any:
        if type(layer) is not nn.Linear or not should_convert_module(name, excluded):
            return None
        count = layer.weight.numel()
        scales = math.ceil(count / _BLOCK)
        if kind == "int8":
            size = count + 4 * layer.out_features
        else:
            size = math.ceil(count / 2) + scales + 4 * math.ceil(scales / _SCALES)
        return nn.Parameter(torch.empty(size, dtype=torch.uint8, device="meta"), False)

    _replace(model, packed, model.dtype, _Hollow)


class _Hollow(QuantizedLinear):
    """A quantised layer that has shapes and no values."""

    def whole_weight(self) -> Tensor:
        return torch.empty(self.out_features, self.in_features, dtype=self.dtype)


def _replace(
    model: nn.Module,
    packed: Callable[[str, nn.Module], Any],
    dtype: torch.dtype,
    kind: type[QuantizedLinear] = QuantizedLinear,
) -> None:
    """Replace each layer for which `packed` returns a parameter by one of this kind."""
    for name, layer in list(model.named_modules()):
        weight = packed(name, layer)
        if weight is not None:
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, kind(layer, weight, dtype))
