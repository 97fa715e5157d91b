"""Keys and values of many answers in one cache of fixed size, and the attention that uses it.

transformers' models take a function for their attention. With this one a forward takes tokens of
any number of answers, each as a row of its own: the next tokens of those that are written, and
parts of the prompts of others, which then cost no pass over the weights of their own (chunked
prefill beside decoding, arXiv:2403.02310).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "slots"
"""Of the attention, for `attn_implementation`."""


@dataclass(frozen=True)
class Part:
    """Tokens of a prompt that follow each other."""

    slot: int
    start: int
    length: int


class Step:
    """Where the tokens of one forward lie: one for each of the slots 0, 1, …, then `parts`."""

    def __init__(self, written: list[int], parts: list[Part], device: torch.device) -> None:
        """`written`: the position of the one token in each slot from the first."""
        slots = list(range(len(written)))
        positions = list(written)
        for part in parts:
            slots += [part.slot] * part.length
            positions += range(part.start, part.start + part.length)
        self.parts = parts
        self.writing = len(written)
        self.width = max(written, default=0) + 1
        self.slots = torch.tensor(slots, device=device)
        self.positions = torch.tensor(positions, device=device)
        columns = torch.arange(self.width, device=device)
        self.mask = (columns <= self.positions[: self.writing, None])[:, None, None]
        """Of the written ones: (slots, 1, 1, width)."""


class SlotCache:
    """Per layer, keys and values of shape (slots, heads, context, head size)."""

    def __init__(self, slots: int, context: int) -> None:
        self._slots, self._context = slots, context
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def write(
        self, layer: int, step: Step, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Puts a step's own, of shape (tokens, heads, 1, head size), where they belong; returns the
        layer's all."""
        if layer not in self._layers:
            self._layers[layer] = (self._room(keys), self._room(values))
        for stored, states in zip(self._layers[layer], (keys, values), strict=True):
            stored[step.slots, :, step.positions] = states[:, :, 0]
        return self._layers[layer]

    def move(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` positions of a slot over those of another."""
        for layer in self._layers.values():
            for stored in layer:
                stored[target, :, :length] = stored[source, :, :length]

    def _room(self, states: torch.Tensor) -> torch.Tensor:
        return states.new_zeros(self._slots, states.shape[1], self._context, states.shape[3])


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _: torch.Tensor | None,
    *,
    scaling: float,
    cache: SlotCache,
    step: Step,
    **other: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers calls it; query of shape (tokens, heads, 1, head size), output of shape
    (tokens, 1, heads, head size). `cache` and `step` come from the call of the model.

    Raises ValueError if the model wants what is not done here.
    """
    unlike = [name for name in ("sliding_window", "softcap", "s_aux") if other.get(name)]
    if unlike:
        raise ValueError(f"its attention has {', '.join(unlike)}")
    keys, values = cache.write(module.layer_idx, step, key, value)
    heads, shared = query.shape[1], keys.shape[1]
    found = query.new_empty(len(query), heads, values.shape[3])
    if rows := step.writing:
        # All queries that share keys see the same of them: they lie where a length would.
        grouped = query[:rows].view(rows, shared, heads // shared, -1)
        output = scaled_dot_product_attention(
            grouped, keys[:rows, :, : step.width], values[:rows, :, : step.width],
            attn_mask=step.mask, scale=scaling,
        )  # fmt: skip
        found[:rows] = output.reshape(rows, heads, -1)
    first = rows
    for part in step.parts:
        end = part.start + part.length
        mask = None
        if part.start:
            columns = torch.arange(end, device=query.device)
            mask = columns <= columns[part.start :, None]
        output = scaled_dot_product_attention(
            query[first : first + part.length].transpose(0, 2),
            keys[part.slot, None, :, :end], values[part.slot, None, :, :end],
            attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=heads != shared,
        )  # fmt: skip
        found[first : first + part.length] = output[0].transpose(0, 1)
        first += part.length
    return found[:, None], None


AttentionInterface.register(NAME, attend)
