"""One pass of the base over packed rows: attention by two gathers, a head that scores completion
tokens only. Knows no trial and no loss.
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
"""Kinds of device that compute in another type than the weights', as the `trl` session does."""
_LOGITS_PER_CHUNK = {"cpu": 1 << 18, "cuda": 1 << 28}
"""On a CPU so many as stay in its cache; on a GPU so many as fill it, half a gigabyte."""


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
    """Causal attention within each gathered row. query: (k, heads, N, head size); transformers'
    interface of an attention function, which wants (k, N, heads, head size) back."""
    if packed_rows is None:
        raise InputError(refusal("its layers don't hand options on to their attention"))
    rows, length = packed_rows.gather.shape
    if options.get("softcap") or options.get("s_aux") is not None or options.get("position_bias"):
        raise InputError(refusal("its attention is more than a softmax of scaled products"))
    longest = packed_rows.longest
    if sliding_window is not None and longest > sliding_window:
        raise InputError(
            refusal(f"its attention sees {sliding_window} tokens, a row has {longest}")
        )
    index = packed_rows.gather.flatten()

    def gathered(states: Tensor) -> Tensor:
        trials, heads, tokens, size = states.shape
        flat = states.transpose(1, 2).reshape(trials * tokens, heads * size)
        taken: Tensor = _Taken.apply(flat, index, packed_rows.gather_back)  # type: ignore[no-untyped-call]
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
    flat = attended.transpose(1, 2).reshape(rows * length, -1)
    home = _Taken.apply(flat, packed_rows.home, packed_rows.home_back[None])  # type: ignore[no-untyped-call]
    return home.view(shape[0], shape[2], shape[1], shape[3]), None


AttentionInterface.register(ATTENTION, attend)


def refusal(reason: str) -> str:
    return f"trainer: packed can't train this model ({reason}); type `trainer: trl`"


@contextmanager
def errors_refused() -> Iterator[None]:
    """An error from inside a packed pass is a refusal of the model; too little memory is none, nor
    is what a GPU, a compiler or a disk does."""
    try:
        yield
    except (InputError, OSError, subprocess.SubprocessError):
        raise
    except Exception as error:
        if is_out_of_memory(error) or is_device_failure(error):
            raise
        raise InputError(refusal(f"its layers can't run packed: {one_line(error)}")) from error


def completion_logps(base: PreTrainedModel, rows: Rows) -> Tensor:
    """Log-probs summed over each completion's tokens, float32, shape (pairs, 2): chosen, rejected.

    `base` must have the attention above.
    """
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
    seen = hidden.reshape(-1, hidden.shape[-1]).index_select(0, rows.predictors)
    bias, scale = head.bias, _logit_scale(base)
    if scale != 1:
        seen, bias = seen * scale, None if bias is None else bias * scale
    weight = head.weight
    if device in AUTOCAST:  # in the type in which a stock trainer's head computes there
        seen, weight = seen.to(AUTOCAST[device]), weight.to(AUTOCAST[device])
        bias = None if bias is None else bias.to(AUTOCAST[device])
    logps: Tensor = _TokenLogps.apply(seen, weight, bias, rows.targets)  # type: ignore[no-untyped-call]
    sums = torch.zeros(2 * rows.pairs, device=logps.device)
    return sums.index_add(0, rows.completion, logps).view(-1, 2)


class _Taken(torch.autograd.Function):
    """Rows of x by an index. The backward takes too, from where each row has gone: what torch
    has for an index, to add at it, is slow on a GPU and in no fixed order there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, back: Tensor) -> Tensor:  # type: ignore[override]
        """x: (n, width), index: (m,), back: (most times that a row is taken, n), into the m."""
        ctx.save_for_backward(back)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        first, *others = ctx.saved_tensors[0]
        slope = gradient.index_select(0, first)
        for index in others:
            slope.add_(gradient.index_select(0, index))
        return slope, None, None


def _logit_scale(base: PreTrainedModel) -> float:
    """By what a model multiplies its logits: Cohere has a factor, Granite a divisor."""
    config = base.config.get_text_config()
    factor = getattr(config, "logit_scale", None) or 1.0
    return float(factor / (getattr(config, "logits_scaling", None) or 1.0))


class _TokenLogps(torch.autograd.Function):
    """Log-softmax of a frozen head at M targets, in chunks.

    The head has no gradient, so all that a backward needs of a token is one vector: the gradient
    of its log-prob by its hidden state, W[target] - softmax(h W) W. The forward makes it while the
    logits are there, and no logits are kept or computed again.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
    ) -> Tensor:
        chunk = max(1, _LOGITS_PER_CHUNK[hidden.device.type] // len(weight))
        logps = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        wants_slopes = ctx.needs_input_grad[0]
        slopes = torch.empty_like(hidden) if wants_slopes else None
        for start in range(0, len(hidden), chunk):
            here = slice(start, start + chunk)
            logits = linear(hidden[here].to(weight.dtype), weight, bias)
            if kernels.can_run(logits):
                kernels.to_logps_(logits, targets[here], logps[here], wants_slopes)
                if slopes is not None:
                    torch.mm(logits, weight, out=slopes[here])
                continue
            scores = torch.log_softmax(logits.float(), dim=-1)
            logps[here] = scores.gather(1, targets[here, None]).squeeze(1)
            if slopes is not None:
                probabilities = scores.exp_().to(weight.dtype)
                slopes[here] = (weight[targets[here]] - probabilities @ weight).to(hidden.dtype)
        if slopes is not None:
            ctx.save_for_backward(slopes)
        return logps

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        (slopes,) = ctx.saved_tensors
        return slopes * gradient[:, None].to(slopes.dtype), None, None, None
