"""Trials whose adapters and gradients lie side by side in memory, ready for one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dpo_train.trainers.packed.adapters import Layer, Layout
from dpo_train.trainers.packed.linear import Adapters, StackedLinear, compute_dtype
from dpo_train.trainers.packed.trial import PackedTrial


class Pack:
    """k trials in one layout, that of the largest rank among them and all their layers.

    Each trial's weights and gradient become rows of two (k, size) tensors; a backward adds to the
    rows in place, an update of a trial changes its own. Passes compute with a third.
    """

    def __init__(self, trials: Sequence[PackedTrial]) -> None:
        self.trials = tuple(trials)
        layers = tuple(dict.fromkeys(layer for t in trials for layer in t.own_layout.layers))
        layout = Layout(layers, max(trial.own_layout.rank for trial in trials))
        for trial in trials:
            trial.carry_into(layout)
        weights = torch.stack([trial.weights for trial in trials])
        gradients = torch.stack([trial.gradient for trial in trials])
        for trial, row, slope in zip(trials, weights, gradients, strict=True):
            trial.weights, trial.gradient = row, slope
        self._weights = weights
        self._roots = weights.new_tensor([[trial.root_of_scale] for trial in trials])
        self._computed = torch.empty_like(weights, dtype=compute_dtype(weights.device.type))
        # A leaf: what is computed from it gets a gradient.
        halves = layout.views(self._computed.detach().requires_grad_(True))
        slopes = layout.views(gradients)
        self._adapters = {
            layer: Adapters(a, b.detach(), a_slope, b_slope)
            for (layer, a, b), (_, a_slope, b_slope) in zip(halves, slopes, strict=True)
        }

    def dissolve(self) -> None:
        """Gives each trial memory of its own, so that none holds that of all."""
        for trial in self.trials:
            trial.weights, trial.gradient = trial.weights.clone(), trial.gradient.clone()

    def put_onto(self, stacks: dict[Layer, StackedLinear], token_counts: Sequence[int]) -> None:
        """Gives the layers the adapters as they are now; before each pass, as steps change them.

        `token_counts` are those of each trial in the pass; unused where all are the same.
        """
        torch.mul(self._weights, self._roots, out=self._computed)
        for layer, stack in stacks.items():
            stack.adapters = self._adapters.get(layer)
            stack.token_counts = tuple(token_counts)
