"""One pass of the base over packed rows. Knows no trial and no loss.

Attention gathers its rows and gathers its outputs back. The head scores completion tokens only.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention
from transformers import AttentionInterface

from dpo_train.device_errors import is_device_failure
from dpo_train.errors import InputError, one_line
from dpo_train.memory import is_out_of_memory
from dpo_train.trainers.packed import kernels
from dpo_train.trainers.packed.rows import Rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = "dpo_packed"
AUTOCAST = {"cuda": torch.bfloat16}
"""The type in which a device computes if it is not the weights' own, as in the `trl` session."""
_LOGITS_PER_CHUNK = {"cpu": 1 << 18, "cuda": 1 << 28}
"""On a CPU as many as fit its cache; on a GPU as many as keep it busy, half a gigabyte."""


def attend(
    _: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    __: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    packed_rows: Rows | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each gathered row, by transformers' interface.

    query, key, value: (k, heads, N, head size), or (1, heads, T, head size). Returns
    (k, N, heads, head size), as transformers expects. Raises InputError for what it can't compute.
    """
    # Refuse what differs from plain causal attention.
    if packed_rows is None:
        raise InputError(refusal("its layers don't pass options on to their attention"))
    rows, length = packed_rows.gather.shape
    if options.get("softcap") or options.get("s_aux") is not None or options.get("position_bias"):
        raise InputError(refusal("its attention is more than a softmax of scaled dot products"))
    longest = packed_rows.longest
    if sliding_window is not None and longest > sliding_window:
        raise InputError(
            refusal(f"its attention sees only {sliding_window} tokens, but a row has {longest}")
        )

    # Gather the attention rows and attend within each.
    index = packed_rows.gather.flatten()

    def gathered(states: Tensor) -> Tensor:
        trials, heads, tokens, size = states.shape
        flat = states.transpose(1, 2).reshape(trials * tokens, heads * size)
        taken: Tensor = _TakeRows.apply(flat, index, packed_rows.gather_inverse)  # type: ignore[no-untyped-call]
        return taken.view(rows, length, heads, size).transpose(1, 2)

    shape = query.shape
    attended = scaled_dot_product_attention(
        gathered(query),
        gathered(key),
        gathered(value),
        is_causal=True,
        scale=scaling,
        enable_gqa=key.shape[1] != query.shape[1],
    )

    # Take each token's output, in the order of the tokens.
    flat = attended.transpose(1, 2).reshape(rows * length, -1)
    inverse = packed_rows.output_index_inverse[None]
    outputs = _TakeRows.apply(flat, packed_rows.output_index, inverse)  # type: ignore[no-untyped-call]
    return outputs.view(shape[0], shape[2], shape[1], shape[3]), None


AttentionInterface.register(ATTENTION, attend)


def refusal(reason: str) -> str:
    """Returns what the user reads when packed can't train a model."""
    return f"trainer: packed can't train this model ({reason}); type `trainer: trl`"


@contextmanager
def errors_refused() -> Iterator[None]:
    """Turns an error from inside a packed pass into an InputError that refuses the model.

    Errors of memory, of a GPU, of a compiler or of a disk pass through: the model did not cause
    them.
    """
    try:
        yield
    except (InputError, OSError, subprocess.SubprocessError):
        raise
    except Exception as error:
        if is_out_of_memory(error) or is_device_failure(error):
            raise
        raise InputError(refusal(f"its layers can't run packed: {one_line(error)}")) from error


def completion_logps(base: PreTrainedModel, rows: Rows) -> Tensor:
    """Returns the log-probs in nats summed over each completion's tokens.

    Their shape is (P, 2), chosen and rejected, float32. The base's attention must be `ATTENTION`.
    """
    # The hidden states of all T tokens.
    decoder: Any = base.get_decoder()
    head: Any = base.get_output_embeddings()
    device = rows.ids.device.type
    with torch.autocast(device, AUTOCAST.get(device), enabled=device in AUTOCAST):
        hidden = decoder(
            input_ids=rows.ids,
            position_ids=rows.positions,
            use_cache=False,
            packed_rows=rows,
        ).last_hidden_state
    # The head, for the M tokens that predict a completion token.
    states = hidden.reshape(-1, hidden.shape[-1]).index_select(0, rows.predictors)
    bias, scale = head.bias, _logit_scale(base)
    if scale != 1:
        states, bias = states * scale, None if bias is None else bias * scale
    weight = head.weight
    if device in AUTOCAST:  # the type in which a stock trainer's head computes there
        states, weight = states.to(AUTOCAST[device]), weight.to(AUTOCAST[device])
        bias = None if bias is None else bias.to(AUTOCAST[device])
    logps: Tensor = _TokenLogps.apply(states, weight, bias, rows.targets)  # type: ignore[no-untyped-call]
    sums = torch.zeros(2 * rows.pairs, device=logps.device)
    return sums.index_add(0, rows.completion, logps).view(-1, 2)


class _TakeRows(torch.autograd.Function):
    """Takes rows of x by an index.

    torch's backward of an index adds at the index, which is slow on a GPU and has no fixed order
    there. So our backward takes rows too, by the inverse index.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:  # type: ignore[override]
        """x: (n, width); index: (m,), into x; inverse: (times, n), into the m rows that are taken,
        where `times` is how often one row is taken at most. Returns (m, width)."""
        ctx.save_for_backward(inverse)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        """gradient: (m, width). Returns that of x, (n, width)."""
        first, *others = ctx.saved_tensors[0]
        x_gradient = gradient.index_select(0, first)
        for index in others:
            x_gradient.add_(gradient.index_select(0, index))
        return x_gradient, None, None


def _logit_scale(base: PreTrainedModel) -> float:
    """Returns the factor of a model's logits: Cohere has a factor, Granite a divisor."""
    config = base.config.get_text_config()
    factor = getattr(config, "logit_scale", None) or 1.0
    return float(factor / (getattr(config, "logits_scaling", None) or 1.0))


class _TokenLogps(torch.autograd.Function):
    """The log-softmax of a frozen head at M targets, computed in chunks.

    The head has no gradient, so a backward needs one vector of each token: the gradient of its
    log-prob by its hidden state, W[target] - softmax(h W) W. The forward computes it while it has
    the logits, so no logits are kept or computed again.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
    ) -> Tensor:
        """hidden: (M, d); weight: (V, d); bias: (V,); targets: (M,). Returns log-probs, (M,)."""
        size = max(1, _LOGITS_PER_CHUNK[hidden.device.type] // len(weight))
        logps = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        wants_gradient = ctx.needs_input_grad[0]
        gradients = torch.empty_like(hidden) if wants_gradient else None
        for start in range(0, len(hidden), size):
            span = slice(start, start + size)
            logits = linear(hidden[span].to(weight.dtype), weight, bias)
            # On a GPU: our kernel, which leaves the gradient in the place of the logits.
            if kernels.can_run(logits):
                kernels.to_logps_(logits, targets[span], logps[span], wants_gradient)
                if gradients is not None:
                    torch.mm(logits, weight, out=gradients[span])
                continue
            # Elsewhere: the same with torch.
            scores = torch.log_softmax(logits.float(), dim=-1)
            logps[span] = scores.gather(1, targets[span, None]).squeeze(1)
            if gradients is not None:
                probabilities = scores.exp_().to(weight.dtype)
                gradients[span] = (weight[targets[span]] - probabilities @ weight).to(hidden.dtype)
        if gradients is not None:
            ctx.save_for_backward(gradients)
        return logps

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        """gradient: (M,). Returns that of `hidden`, (M, d)."""
        (gradients,) = ctx.saved_tensors
        return gradients * gradient[:, None].to(gradients.dtype), None, None, None
