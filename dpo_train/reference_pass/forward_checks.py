"""Whether a base computes what this pass and the trainers take it to compute, seen on one row
before the pass. Knows no list of architectures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dpo_train.errors import InputError

_SHORT_TOKENS = 32
"""So many tokens of a row are enough for a first look."""
_MOST_TOKENS = 512
"""So many are read to see what random draws change."""
_PASSES = 8
"""So many are compared, because a draw may change nothing by chance."""
_TOLERANCE = 1e-4
"""In nats a token, the mean over a row. What is accepted agrees to 1e-5 in float32."""


def check_forward(base: Any, ids: Sequence[int]) -> None:
    """Refuses a base whose logits TRL's LM head does not compute, and one whose results in training
    are random. Takes two forwards of a few tokens, and more only where these don't agree.

    `base` has TRL's head (`add_fused_lm_head`), and is in evaluation mode afterwards; `ids` are the
    tokens of a row. Raises InputError.
    """
    import torch  # slow to import

    row = torch.tensor([ids[:_MOST_TOKENS]], device=base.device)
    short = row[:, :_SHORT_TOKENS]
    # Autocast stays off: its rounding would hide small differences of a model in float32.
    with torch.no_grad():
        own, allowed = _own_logps(base.eval(), short)
        if not bool(own.isfinite().all()):
            return  # damaged weights: nothing can be compared, and the first step says so
        before = _random_state(base.device)
        in_training = _logps(base.train(), short)
        is_drawn = not torch.equal(before, _random_state(base.device))
        base.eval()
        if is_drawn or not _difference(in_training, own) <= allowed:
            _refuse_another_head(_difference(_logps(base, short), own), allowed)
            _refuse_random_results(base, row)


def _own_logps(base: Any, row: Any) -> tuple[Any, float]:
    """log π of each token but the first under the model's own logits, (T-1,), and how far from
    them those of TRL's head may be, as a mean."""
    import torch  # slow to import

    output = base(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False)
    # torch's log_softmax of so many float32 numbers is itself off by 1e-5.
    logits = output.logits[0, :-1].double()
    targets = row[0, 1:, None]
    # A model in bfloat16 rounds its logits after each thing that it does to them, the head once.
    size = logits.gather(1, targets).abs() + logits.amax(1, keepdim=True).abs()
    rounding = float(size.mean()) * torch.finfo(base.dtype).eps / 2
    return logits.log_softmax(1).gather(1, targets)[:, 0], _TOLERANCE + rounding


def _logps(base: Any, row: Any) -> Any:
    """The same log-probs under TRL's head, which the pass and the trainers use."""
    import torch  # slow to import

    mask = torch.ones_like(row)
    return base(input_ids=row, attention_mask=mask, labels=row, fused_lm_head=True).log_probs[0]


def _refuse_another_head(difference: float, allowed: float) -> None:
    """TRL's head reads a few settings of the configuration. A model may do more to its logits, as
    RecurrentGemma, which caps them by a setting of another name."""
    if not difference <= allowed:
        raise InputError(
            "model.id: TRL's fused LM head does not compute this model's logits (they differ by "
            f"{difference:.2g} nats a token); give another model"
        )


def _refuse_random_results(base: Any, row: Any) -> None:
    """A draw that changes no result is harmless. Passes in evaluation mode differ by no more than
    the device's rounding."""
    noise = _spread(base, row, passes=2)
    difference = _spread(base.train(), row, passes=_PASSES)
    base.eval()
    if not difference <= _TOLERANCE + 3 * noise:
        raise InputError(
            "model.id: this model draws random numbers in training but not in evaluation (two "
            f"passes over one row differ by {difference:.2g} nats a token), so its trials can't be "
            "compared; give another model"
        )


def _spread(base: Any, row: Any, passes: int) -> float:
    """The largest difference of passes over the same row from the first one."""
    first = _logps(base, row)
    return max(_difference(_logps(base, row), first) for _ in range(passes - 1))


def _random_state(device: Any) -> Any:
    import torch  # slow to import

    on_cpu = torch.get_rng_state()
    if device.type != "cuda":
        return on_cpu
    return torch.cat([on_cpu, torch.cuda.get_rng_state(device)])


def _difference(left: Any, right: Any) -> float:
    """In nats a token."""
    return float((left - right).abs().mean())
