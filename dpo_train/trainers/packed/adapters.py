"""A LoRA adapter as one flat vector: its layout, its first values, PEFT's format.

So its norm, its optimizer step and its copy are one operation each, and the vectors of many trials
make one tensor, of which the layers see strided views.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dpo_train import model
from dpo_train.config import LoraConfig, ModelConfig
from dpo_train.trainers.packed.forward import errors_refused

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PREFIX = "base_model.model."
"""Of every name in a PEFT adapter."""


@dataclass(frozen=True)
class Layer:
    """A layer that has an adapter: its name in the base, and its sizes."""

    name: str
    inputs: int
    outputs: int


@dataclass(frozen=True)
class Layout:
    """Where the matrices of each layer stand in a flat vector."""

    layers: tuple[Layer, ...]
    rank: int

    @cached_property
    def size(self) -> int:
        return sum(self.rank * (layer.inputs + layer.outputs) for layer in self.layers)

    def views(self, flat: Tensor) -> Iterator[tuple[Layer, Tensor, Tensor]]:
        """(layer, A (..., rank, inputs), B^T (..., rank, outputs)) of vectors (..., size)."""
        at = 0
        for layer in self.layers:
            end = at + self.rank * layer.inputs
            a = flat[..., at:end].unflatten(-1, (self.rank, layer.inputs))
            at = end + self.rank * layer.outputs
            b = flat[..., end:at].unflatten(-1, (self.rank, layer.outputs))
            yield layer, a, b

    def carry(self, flat: Tensor, other: Layout) -> Tensor:
        """The vector in another layout: ranks and layers that this one lacks are zero, which is
        where they stay: neither half of an adapter that is zero gets a gradient."""
        if other == self:
            return flat
        moved = flat.new_zeros(other.size)
        places = {layer: (a, b) for layer, a, b in other.views(moved)}
        rank = min(self.rank, other.rank)
        for layer, a, b in self.views(flat):
            if layer in places:
                places[layer][0][:rank] = a[:rank]
                places[layer][1][:rank] = b[:rank]
        return moved


def adapted_layers(base: PreTrainedModel, lora: LoraConfig) -> tuple[Layer, ...]:
    """The layers that PEFT gives an adapter for this config, in its order. Raises InputError."""
    import peft  # slow to import

    model.refuse_missing_targets(base, lora)
    with errors_refused():
        wrapped = wrap(base, lora.model_copy(update={"r": 1}))
    found = [
        Layer(name.removeprefix(PREFIX), module.in_features, module.out_features)
        for name, module in wrapped.named_modules()
        if isinstance(module, peft.tuners.lora.Linear)
    ]
    wrapped.unload()
    return tuple(found)


def wrap(base: PreTrainedModel, lora: LoraConfig) -> Any:
    """The base in PEFT's wrapper, without a draw from torch's random numbers.

    Raises what PEFT raises; then the base is loaded anew for whoever asks next.
    """
    import peft  # slow to import

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # PEFT warns of patterns that it added itself, and of transposed layers, which it handles.
        # What it adapts in the end is compared by the self-check.
        warnings.simplefilter("ignore")
        try:
            return peft.get_peft_model(base, model.peft_config(lora))
        except Exception:
            model.forget_base()  # it may hold half of the adapters
            raise


def initial(layout: Layout, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The adapter as PEFT draws it after `set_seed(seed)`: A uniform, B zero, float32, on the CPU.

    PEFT makes two linear layers, whose own values are drawn first and thrown away. It rounds A to
    the `dtype` of the base, if that is no quantised one.
    """
    flat = torch.zeros(layout.size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer, a, _ in layout.views(flat):
            nn.Linear(layer.inputs, layout.rank, bias=False)
            nn.Linear(layout.rank, layer.outputs, bias=False)
            drawn = torch.empty(layout.rank, layer.inputs)
            nn.init.kaiming_uniform_(drawn, a=math.sqrt(5))
            a.copy_(drawn.to(dtype))
    return flat


def save(layout: Layout, flat: Tensor, base: ModelConfig, lora: LoraConfig, folder: Path) -> None:
    """Writes adapter_model.safetensors and adapter_config.json, as PEFT would."""
    tensors = {}
    for layer, a, b in layout.views(flat.detach().cpu()):
        tensors[f"{PREFIX}{layer.name}.lora_A.weight"] = a.contiguous()
        tensors[f"{PREFIX}{layer.name}.lora_B.weight"] = b.T.contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = model.peft_config(lora)
    config.base_model_name_or_path, config.revision = base.id, base.revision
    config.inference_mode = True
    # The layers by name: what `all-linear` meant for this base.
    config.target_modules = sorted({layer.name.rpartition(".")[2] for layer in layout.layers})
    config.save_pretrained(str(folder))
