"""Trials whose adapters and gradients are stacked in memory, ready for one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from dpo_train.trainers.packed.adapters import Layer, Layout
from dpo_train.trainers.packed.linear import Adapters, StackedLinear, compute_dtype
from dpo_train.trainers.packed.trial import PackedTrial


class Pack:
    """k trials in one layout, which has all their layers and the largest of their ranks.

    Each trial's weights and gradient become rows of two (k, size) tensors. A backward adds to the
    gradients in place, and a trial's update changes its row. A third tensor has the weights times
    their scale, in the type in which a pass computes.
    """

    def __init__(self, trials: Sequence[PackedTrial]) -> None:
        # One layout for all trials, and their vectors as rows of two tensors.
        self.trials = tuple(trials)
        layers = tuple(dict.fromkeys(layer for t in trials for layer in t.own_layout.layers))
        layout = Layout(layers, max(trial.own_layout.rank for trial in trials))
        for trial in trials:
            trial.change_layout(layout)
        weights = torch.stack([trial.weights for trial in trials])
        gradients = torch.stack([trial.gradient for trial in trials])
        for trial, weights_row, gradient_row in zip(trials, weights, gradients, strict=True):
            trial.weights, trial.gradient = weights_row, gradient_row
        self._weights = weights
        self._roots = weights.new_tensor([[trial.root_of_scale] for trial in trials])
        # What a pass computes with. It needs a gradient, so that autograd calls our backward.
        self._computed = torch.empty_like(weights, dtype=compute_dtype(weights.device.type))
        matrices = layout.views(self._computed.detach().requires_grad_(True))
        matrix_gradients = layout.views(gradients)
        self._adapters = {
            layer: Adapters(a, b.detach(), a_gradient, b_gradient)
            for (layer, a, b), (_, a_gradient, b_gradient) in zip(
                matrices, matrix_gradients, strict=True
            )
        }

    def dissolve(self) -> None:
        """Gives each trial memory of its own, so that no trial holds the memory of all."""
        for trial in self.trials:
            trial.weights, trial.gradient = trial.weights.clone(), trial.gradient.clone()

    def put_onto(self, stacks: Mapping[Layer, StackedLinear], token_counts: Sequence[int]) -> None:
        """Gives the layers the adapters with their present weights; steps change these, so this
        comes before each pass.

        `token_counts`: tokens of each trial in the pass; unused where all have the same.
        """
        torch.mul(self._weights, self._roots, out=self._computed)
        for layer, stack in stacks.items():
            own = self._adapters.get(layer)
            stack.adapters = own and replace(own, token_counts=tuple(token_counts))
