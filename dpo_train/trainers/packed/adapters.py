"""A LoRA adapter as one flat vector: its layout, its initial values, PEFT's file format.

With a flat vector the norm, the optimizer step and a copy are one operation each, and the vectors
of many trials make one tensor, of which the layers get strided views.
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
"""Every name in a PEFT adapter begins with this."""


@dataclass(frozen=True)
class Layer:
    """A layer that has an adapter: its name in the base, its input and output sizes."""

    name: str
    inputs: int
    outputs: int


@dataclass(frozen=True)
class Layout:
    """The positions of each layer's matrices in a flat vector."""

    layers: tuple[Layer, ...]
    rank: int

    @cached_property
    def size(self) -> int:
        """Values in the flat vector."""
        return sum(self.rank * (layer.inputs + layer.outputs) for layer in self.layers)

    def views(self, flat: Tensor) -> Iterator[tuple[Layer, Tensor, Tensor]]:
        """Yields (layer, A, B^T), both as views of `flat`.

        flat: (..., size); A: (..., rank, inputs); B^T: (..., rank, outputs).
        """
        at = 0
        for layer in self.layers:
            end = at + self.rank * layer.inputs
            a = flat[..., at:end].unflatten(-1, (self.rank, layer.inputs))
            at = end + self.rank * layer.outputs
            b = flat[..., end:at].unflatten(-1, (self.rank, layer.outputs))
            yield layer, a, b

    def convert(self, flat: Tensor, other: Layout) -> Tensor:
        """Returns a vector of this layout, (size,), in another layout, (other.size,).

        Ranks and layers that this layout lacks are zero. They stay zero in training: where A and B
        are both zero, neither gets a gradient.
        """
        if other == self:
            return flat
        converted = flat.new_zeros(other.size)
        matrices = {layer: (a, b) for layer, a, b in other.views(converted)}
        rank = min(self.rank, other.rank)
        for layer, a, b in self.views(flat):
            if layer in matrices:
                matrices[layer][0][:rank] = a[:rank]
                matrices[layer][1][:rank] = b[:rank]
        return converted


def adapted_layers(base: PreTrainedModel, lora: LoraConfig) -> tuple[Layer, ...]:
    """Returns the layers to which PEFT gives an adapter for this configuration, in PEFT's order.

    Raises InputError if a target module does not exist or PEFT can't wrap the base.
    """
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
    """Returns the base in PEFT's wrapper, and leaves torch's random state as it was.

    Raises what PEFT raises. The base may then have some of the adapters, so it is forgotten and the
    next caller loads it again.
    """
    import peft  # slow to import

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # PEFT warns of patterns that it added itself, and of transposed layers, which it handles.
        # The self-check compares what it adapts in the end, so we ignore the warnings.
        warnings.simplefilter("ignore")
        try:
            return peft.get_peft_model(base, model.peft_config(lora))
        except Exception:
            model.forget_base()
            raise


def initial(layout: Layout, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns the adapter as PEFT draws it after `set_seed(seed)`: A uniform, B zero.

    The vector has shape (size,), float32, on the CPU. PEFT makes two linear layers, whose own
    values are drawn first and thrown away, so we draw these too. It rounds A to `dtype`, the type
    of a base that is not quantised.
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
    """Writes the adapter `flat`, (size,), as PEFT would: adapter_model.safetensors and
    adapter_config.json."""
    tensors = {}
    for layer, a, b in layout.views(flat.detach().cpu()):
        tensors[f"{PREFIX}{layer.name}.lora_A.weight"] = a.contiguous()
        tensors[f"{PREFIX}{layer.name}.lora_B.weight"] = b.T.contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = model.peft_config(lora)
    config.base_model_name_or_path, config.revision = base.id, base.revision
    config.inference_mode = True
    # `all-linear` means other layers in another base, so we name the layers.
    config.target_modules = sorted({layer.name.rpartition(".")[2] for layer in layout.layers})
    config.save_pretrained(str(folder))
