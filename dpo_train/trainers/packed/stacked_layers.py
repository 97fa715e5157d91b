"""The linear layers of a base that can hold the adapters of many trials.

Layers are added when a trial first needs them, after the self-check has passed for its targets.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dpo_train.config import LoraConfig
from dpo_train.trainers.packed import adapters
from dpo_train.trainers.packed.adapters import Layer
from dpo_train.trainers.packed.linear import StackedLinear
from dpo_train.trainers.packed.rows import Split
from dpo_train.trainers.packed.self_check import AdaptedBase, check_once

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class StackedLayers:
    """The layers of one base whose `forward` is a `StackedLinear`."""

    def __init__(self, base: PreTrainedModel, attention: str, prepared: Path, device: str) -> None:
        """attention: the attention that the base had before it was packed."""
        self.by_layer: dict[Layer, StackedLinear] = {}
        self._base = base
        self._attention = attention
        self._prepared = prepared
        self._device = device
        self._checked: dict[str, tuple[Layer, ...]] = {}
        """The layers of the target modules for which the self-check has passed."""

    def adapted_by(self, lora: LoraConfig, split: Split, checkpointed: bool) -> tuple[Layer, ...]:
        """Returns the layers that get an adapter with this configuration.

        checkpointed: whether the self-check must save memory. Raises InputError if the check
        refuses them, again at each call; adapters of other trials stay as they are.
        """
        targets = str(lora.target_modules)
        if targets not in self._checked:
            layers = adapters.adapted_layers(self._base, lora)
            modules = dict(self._base.named_modules())
            for layer in layers:
                if layer not in self.by_layer:
                    self.by_layer[layer] = StackedLinear(modules[layer.name])
            self.clear()
            adapted = AdaptedBase(
                self._base,
                self.by_layer,
                layers,
                lora,
                self._device,
                self._attention,
                checkpointed,
            )
            check_once(self._prepared, adapted, split.pairs)
            self._checked[targets] = layers
        return self._checked[targets]

    def clear(self) -> None:
        """Takes the adapters out of all layers, which then compute as the base does."""
        for stack in self.by_layer.values():
            stack.adapters = None

    def remove(self) -> None:
        """Gives each layer its own `forward` back."""
        for stack in self.by_layer.values():
            stack.remove()
