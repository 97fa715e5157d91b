"""Checks on one row, before the reference pass, that a base computes what the trainers assume.

This module needs no list of architectures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dpo_train.errors import InputError

_SHORT_TOKENS = 32
"""Tokens of a row for the first check."""
_MOST_TOKENS = 512
"""Most tokens of a row for the check of random results."""
_PASSES = 8
"""Passes that are compared, because a random draw may change nothing by chance."""
_TOLERANCE = 1e-4
"""The allowed difference in nats per token, as a mean over a row. In float32 the models that are
accepted agree to 1e-5."""


def check_forward(base: Any, ids: Sequence[int]) -> None:
    """Refuse a base whose logits TRL's LM head does not compute, or whose training is random.

    It takes two forward passes over a few tokens, and more only if these differ. `base` must have
    TRL's head (`add_fused_lm_head`), and is in evaluation mode afterwards. `ids` are the tokens of
    a row. Raises InputError.
    """
    import torch  # slow to import

    row = torch.tensor([ids[:_MOST_TOKENS]], device=base.device)
    short = row[:, :_SHORT_TOKENS]
    # Autocast is off, because its rounding would hide small differences of a model in float32.
    with torch.no_grad():
        own, allowed = _own_logps(base.eval(), short)
        if not bool(own.isfinite().all()):
            return  # the weights are damaged, and the first step of training will report it
        before = _random_state(base.device)
        in_training = _logps(base.train(), short)
        uses_random_numbers = not torch.equal(before, _random_state(base.device))
        base.eval()
        if uses_random_numbers or not _difference(in_training, own) <= allowed:
            _refuse_another_head(_difference(_logps(base, short), own), allowed)
            _refuse_random_results(base, row)


def _own_logps(base: Any, row: Any) -> tuple[Any, float]:
    """Return log π of each token but the first under the model's own logits, shape (T-1,).

    Return also the mean difference that is allowed for TRL's head, in nats per token.
    """
    import torch  # slow to import

    output = base(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False)
    # torch's log_softmax over a vocabulary in float32 has errors of 1e-5, so we use float64.
    logits = output.logits[0, :-1].double()
    targets = row[0, 1:, None]
    # A model in bfloat16 rounds its logits after each operation on them, and TRL's head only once.
    size = logits.gather(1, targets).abs() + logits.amax(1, keepdim=True).abs()
    rounding = float(size.mean()) * torch.finfo(base.dtype).eps / 2
    return logits.log_softmax(1).gather(1, targets)[:, 0], _TOLERANCE + rounding


def _logps(base: Any, row: Any) -> Any:
    """Return the log-probs under TRL's head, which the pass and the trainers use, shape (T-1,)."""
    import torch  # slow to import

    mask = torch.ones_like(row)
    return base(input_ids=row, attention_mask=mask, labels=row, fused_lm_head=True).log_probs[0]


def _refuse_another_head(difference: float, allowed: float) -> None:
    """Raise InputError if TRL's head computes other log-probs than the model.

    TRL's head knows a few settings of the configuration. Some models do more to their logits:
    RecurrentGemma caps them by a setting of another name.
    """
    if not difference <= allowed:
        raise InputError(
            "model.id: TRL's fused LM head does not compute this model's logits (they differ by "
            f"{difference:.2g} nats per token); give another model"
        )


def _refuse_random_results(base: Any, row: Any) -> None:
    """Raise InputError if passes in training mode differ by more than the device's rounding.

    A random draw that changes no result is harmless. Passes in evaluation mode show the rounding.
    """
    noise = _spread(base, row, passes=2)
    difference = _spread(base.train(), row, passes=_PASSES)
    base.eval()
    if not difference <= _TOLERANCE + 3 * noise:
        raise InputError(
            "model.id: this model draws random numbers in training but not in evaluation (two "
            f"passes over one row differ by {difference:.2g} nats per token), so its trials can't "
            "be compared; give another model"
        )


def _spread(base: Any, row: Any, passes: int) -> float:
    """Return the largest difference between the first and a later pass over the same row."""
    first = _logps(base, row)
    return max(_difference(_logps(base, row), first) for _ in range(passes - 1))


def _random_state(device: Any) -> Any:
    import torch  # slow to import

    on_cpu = torch.get_rng_state()
    if device.type != "cuda":
        return on_cpu
    return torch.cat([on_cpu, torch.cuda.get_rng_state(device)])


def _difference(left: Any, right: Any) -> float:
    """Return the mean absolute difference, in nats per token."""
    return float((left - right).abs().mean())
