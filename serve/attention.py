"""Stores keys and values of many requests in one cache of fixed size, and computes the attention.

Models of transformers accept a function for their attention. With this one, a forward pass takes
tokens of any number of requests, each token as its own row. It decodes the next token of some
requests and prefills prompt chunks of others, which then need no pass over the weights of their own
(chunked prefill, arXiv:2403.02310).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.utils import logging

from serve.errors import UnsupportedAttention

NAME = "slots"
"""The name of this attention, for `attn_implementation`."""
_REFUSED = {
    "sliding_window": "a sliding window",
    "softcap": "soft-capped scores",
    "s_aux": "sinks",
    "position_bias": "a position bias",
}
"""Arguments of models for features that are not supported here."""


@dataclass(frozen=True)
class PromptChunk:
    """Consecutive tokens of a prompt, and their slot."""

    slot: int
    start: int
    length: int


class BatchStep:
    """Says where the tokens of one forward pass are in the cache.

    The decoding requests come first, with one token each, in the slots 0, 1, …, then the prompt
    chunks.
    """

    def __init__(
        self, decode_positions: list[int], chunks: list[PromptChunk], device: torch.device
    ) -> None:
        """`decode_positions` has the position of each decoding request's token, by slot."""
        slots = list(range(len(decode_positions)))
        positions = list(decode_positions)
        for chunk in chunks:
            slots += [chunk.slot] * chunk.length
            positions += range(chunk.start, chunk.start + chunk.length)
        self.chunks = chunks
        self.decode_count = len(decode_positions)
        self.decode_width = max(decode_positions, default=0) + 1
        self.slots = torch.tensor(slots, device=device)
        self.positions = torch.tensor(positions, device=device)
        columns = torch.arange(self.decode_width, device=device)
        self.decode_mask = (columns <= self.positions[: self.decode_count, None])[:, None, None]
        """Shape (decoding slots, 1, 1, width)."""


class SlotCache:
    """The keys and values of each layer, of shape (slots, heads, context, head size)."""

    def __init__(self, slots: int, context: int) -> None:
        self._slots, self._context = slots, context
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def write(
        self, layer: int, step: BatchStep, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores the keys and values of a step, of shape (tokens, heads, 1, head size).

        Returns all keys and values of the layer.
        """
        if layer not in self._layers:
            self._layers[layer] = (self._allocate(keys), self._allocate(values))
        for stored, states in zip(self._layers[layer], (keys, values), strict=True):
            stored[step.slots, :, step.positions] = states[:, :, 0]
        return self._layers[layer]

    def move(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` positions of a slot over those of another."""
        for layer in self._layers.values():
            for stored in layer:
                stored[target, :, :length] = stored[source, :, :length]

    def _allocate(self, states: torch.Tensor) -> torch.Tensor:
        return states.new_zeros(self._slots, states.shape[1], self._context, states.shape[3])


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    cache: SlotCache | None = None,
    step: BatchStep | None = None,
    **other: Any,
) -> tuple[torch.Tensor, None]:
    """Computes the attention of one layer. transformers calls it.

    The query has the shape (tokens, heads, 1, head size), the output (tokens, 1, heads, head
    size). `cache` and `step` come from the engine's call of the model. Raises UnsupportedAttention.
    """
    # 1. Refuse what is not supported.
    if refused := [what for name, what in _REFUSED.items() if other.get(name) is not None]:
        raise UnsupportedAttention(f"its attention has {', '.join(refused)}")
    if attention_mask is not None:
        raise UnsupportedAttention("its attention has a mask of its own")
    if cache is None or step is None:
        raise UnsupportedAttention("its layers do not pass the server's cache to their attention")
    # 2. Store the new keys and values.
    keys, values = cache.write(module.layer_idx, step, key, value)
    heads, key_heads = query.shape[1], keys.shape[1]
    result = query.new_empty(len(query), heads, values.shape[3])
    # 3. Decode: the first rows, all in one call.
    if rows := step.decode_count:
        # Query heads that share keys also share the mask, so we put them on the length's dimension.
        grouped = query[:rows].view(rows, key_heads, heads // key_heads, -1)
        width = step.decode_width
        output = scaled_dot_product_attention(
            grouped, keys[:rows, :, :width], values[:rows, :, :width],
            attn_mask=step.decode_mask, scale=scaling,
        )  # fmt: skip
        result[:rows] = output.reshape(rows, heads, -1)
    # 4. Prefill: one call for each prompt chunk.
    first = rows
    for chunk in step.chunks:
        end = chunk.start + chunk.length
        mask = None
        if chunk.start:
            columns = torch.arange(end, device=query.device)
            mask = columns <= columns[chunk.start :, None]
        output = scaled_dot_product_attention(
            query[first : first + chunk.length].transpose(0, 2),
            keys[chunk.slot, None, :, :end], values[chunk.slot, None, :, :end],
            attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=heads != key_heads,
        )  # fmt: skip
        result[first : first + chunk.length] = output[0].transpose(0, 1)
        first += chunk.length
    return result[:, None], None


AttentionInterface.register(NAME, attend)


def base_of(model: Any) -> Any:
    """Returns the model itself, which PEFT may have wrapped."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def set_attention(model: Any, name: str) -> str:
    """Sets a model's attention, and returns the name of the previous one.

    Raises UnsupportedAttention for a model that accepts no other attention than its own.
    """
    own: str = model.config._attn_implementation
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # the exception below replaces transformers' warning
    try:
        model.set_attn_implementation(name)
    finally:
        logging.set_verbosity(verbosity)
    if model.config._attn_implementation != name:
        raise UnsupportedAttention("it accepts no other attention than its own")
    return own
