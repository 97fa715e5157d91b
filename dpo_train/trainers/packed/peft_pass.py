"""PEFT's own pass over an adapted base, with which the self-check compares a packed pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dpo_train.config import LoraConfig
from dpo_train.trainers.packed.adapters import PREFIX, Layout, wrap
from dpo_train.trainers.packed.forward import ATTENTION, AUTOCAST
from dpo_train.trainers.packed.rows import Pair

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Pass:
    """The result of one forward and backward."""

    logps: Tensor
    """(P, 2), in nats per token."""
    gradients: dict[str, Tensor]
    """The gradient of each trainable matrix, by PEFT's name of it."""


@contextmanager
def wrapped_by_peft(
    base: PreTrainedModel, layout: Layout, flat: Tensor, lora: LoraConfig
) -> Iterator[Any]:
    """Yields the base wrapped by PEFT with the adapter `flat`; then unwraps it again.

    The adapter may have another rank than `lora`; it gets the same scale, alpha / r.
    """
    alpha = lora.alpha * layout.rank / lora.r
    wrapped = wrap(base, lora.model_copy(update={"r": layout.rank, "alpha": alpha})).eval()
    try:
        matrices = dict(wrapped.named_parameters())
        with torch.no_grad():
            for name, value in matrices_by_name(layout, flat).items():
                matrices[name].copy_(value)
        yield wrapped
    finally:
        wrapped.unload()
        base.requires_grad_(False)
        base.set_attn_implementation(ATTENTION)


def trainable(wrapped: Any) -> set[str]:
    """Returns the names of the parameters that PEFT would train."""
    return {name for name, each in wrapped.named_parameters() if each.requires_grad}


def matrices_by_name(layout: Layout, flat: Tensor) -> dict[str, Tensor]:
    """Returns the matrices of the adapter `flat`, (size,), by PEFT's names."""
    named = {}
    for layer, a, b in layout.views(flat):
        named[f"{PREFIX}{layer.name}.lora_A.default.weight"] = a
        named[f"{PREFIX}{layer.name}.lora_B.default.weight"] = b.T
    return named


def peft_pass(wrapped: Any, pairs: Sequence[Pair], signed_weights: Tensor, attention: str) -> Pass:
    """Runs PEFT's forward and backward over P pairs.

    signed_weights: (P, 2), the factor of each completion's log-prob in the sum whose gradient is
    taken.
    attention: the name of the attention to compute with. Each row is a pass of its own, with the
    logits of its completion only, so that memory stays small.
    """
    # The log-probs, (P, 2), completion by completion.
    wrapped.get_base_model().set_attn_implementation(attention)
    wrapped.zero_grad(set_to_none=True)
    logps = torch.zeros_like(signed_weights)
    for index, pair in enumerate(pairs):
        targets = torch.from_numpy(pair.targets).to(signed_weights.device)
        sides = (
            (pair.chosen_row, targets[: pair.chosen_tokens]),
            (pair.rejected_row, targets[pair.chosen_tokens :]),
        )
        for side, (row, completion) in enumerate(sides):
            ids = torch.from_numpy(pair.ids[row]).to(signed_weights.device)[None]
            value = _summed_logps(wrapped, ids, completion)
            (value * signed_weights[index, side]).backward()  # type: ignore[no-untyped-call]
            logps[index, side] = value.detach() * signed_weights[index, side].abs()
    # The gradients that these passes have summed up.
    gradients = {
        name: torch.zeros_like(each) if each.grad is None else each.grad.clone()
        for name, each in wrapped.named_parameters()
        if each.requires_grad
    }
    return Pass(logps, gradients)


def _summed_logps(wrapped: Any, ids: Tensor, targets: Tensor) -> Tensor:
    """Returns the summed log π of the targets, which the last positions of the row predict.

    ids: (1, tokens of the row); targets: (tokens of the completion,).
    """
    device = ids.device.type
    with torch.autocast(device, AUTOCAST.get(device), enabled=device in AUTOCAST):
        logits = wrapped(input_ids=ids, use_cache=False, logits_to_keep=len(targets)).logits
    scores = torch.log_softmax(logits[0, -len(targets) :].float(), dim=-1)
    return scores.gather(1, targets[:, None]).sum()
