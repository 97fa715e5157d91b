"""Checks that a packed pass trains a base as PEFT does, before the first trial trains.

Both get the same pairs and the same adapter, in which neither A nor B is zero. A model for which
they differ, or that packed can't compute, is refused with the reason. So we need no list of
supported architectures.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dpo_train.activation_checkpointing import can_be_checkpointed, checkpointed_layers, switch_off
from dpo_train.config import LoraConfig
from dpo_train.errors import InputError
from dpo_train.memory import give_back, is_out_of_memory
from dpo_train.trainers.packed.adapters import PREFIX, Layer, Layout
from dpo_train.trainers.packed.forward import (
    AUTOCAST,
    completion_logps,
    errors_refused,
    refusal,
)
from dpo_train.trainers.packed.linear import Adapters, StackedLinear, compute_dtype
from dpo_train.trainers.packed.peft_pass import (
    Pass,
    matrices_by_name,
    peft_pass,
    trainable,
    wrapped_by_peft,
)
from dpo_train.trainers.packed.rows import Pair, Split, collate

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_RANK = 4
"""Rank of the adapter in the check, if the trial's own is not smaller."""
_SPREAD = 0.02
"""Standard deviation of the adapter's B, which is zero when a trial begins."""
_LOGPS_TOLERANCE = 1e-4
"""It is in nats per token. Dense models in float32 agree to 2e-6."""
_GRADIENT_TOLERANCE = 1e-3
"""It is a share of the norm of a matrix's gradient. Dense models in float32 agree to 1e-6."""
_SMALL_GRADIENT = 1e-4
"""It is a share of the largest gradient's norm. Rounding shows in smaller gradients."""
_LENGTH_TOLERANCE = 0.15
"""The share by which a gradient may be too long or too short along PEFT's gradient. A forgotten
scale shows here."""
_LARGE_GRADIENT = 0.01
"""It is a share of the largest gradient's norm. In a smaller gradient rounding does not average
out."""
_FORMAT = 3
"""The version of the packed pass. A check that an earlier version passed does not count."""
_REFERENCE_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""How many nats per token the packed forward may differ from the prepared reference pass, for each
type in which it is computed."""


@dataclass(frozen=True)
class AdaptedBase:
    """A base whose linear layers can hold packed adapters, and the layers that PEFT would adapt."""

    base: PreTrainedModel
    stacks: Mapping[Layer, StackedLinear]
    layers: tuple[Layer, ...]
    lora: LoraConfig
    device: str
    attention: str
    """The attention that the base had before."""
    checkpointed: bool
    """Whether its layers are computed again in the backward, so that a check needs less memory."""


def compare_with_reference(base: PreTrainedModel, split: Split, device: str) -> None:
    """Compares the packed forward over some pairs with the prepared reference pass.

    So a model is refused if it computes anything that the packed forward doesn't know. Raises
    InputError.
    """
    with torch.no_grad(), errors_refused():
        logps = completion_logps(base, collate([split.pairs[:4]], device)).cpu().numpy()
    difference = np.abs(logps - split.reference[:4]) / split.tokens[:4]
    largest = float(difference.max())
    if not largest <= _REFERENCE_TOLERANCE[AUTOCAST.get(device, base.dtype)]:
        raise InputError(
            refusal(f"packed log-probs differ from the base's by {largest:.2g} nats per token")
        )


def check_once(prepared: Path, adapted: AdaptedBase, pairs: Sequence[Pair]) -> None:
    """Runs `check` unless a file in the prepared data says that it has passed before.

    It is run once for a base, its target modules, the device and the versions of the libraries that
    compute there; over the longest of the pairs and one of median length.
    """
    libraries = ["torch", "transformers", "peft"]
    if adapted.device == "cuda":
        libraries += ["triton", "liger-kernel"]
    versions = {name: _version(name) for name in libraries}
    recipe = json.dumps([_FORMAT, adapted.lora.target_modules, adapted.device, versions])
    mark = prepared / f"packed-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.checked"
    if mark.exists():
        return
    ordered = sorted(pairs, key=lambda pair: len(pair.ids))
    check(adapted, [ordered[-1], ordered[len(ordered) // 2]])
    with suppress(OSError):  # with a full disk the next engine checks again
        mark.touch()


def _version(package: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(package)
    return None


def check(adapted: AdaptedBase, pairs: Sequence[Pair]) -> None:
    """Compares a packed forward and backward over the pairs with PEFT's.

    If memory runs out, it starts again with activation checkpointing. Raises InputError that names
    what packed does not train as PEFT does.
    """
    try:
        _check(adapted, pairs)
    except Exception as error:
        can_save_memory = not adapted.checkpointed and can_be_checkpointed(adapted.base)
        if not (can_save_memory and is_out_of_memory(error)):
            raise
    else:
        return
    give_back()  # not earlier: the error held the tensors of the pass
    _check(replace(adapted, checkpointed=True), pairs)


def _check(adapted: AdaptedBase, pairs: Sequence[Pair]) -> None:
    base, device = adapted.base, adapted.device
    _refuse_capped_logits(base)
    layout = Layout(adapted.layers, min(adapted.lora.r, _RANK))
    flat = _random_adapter(layout, device)
    signed_weights = _signed_weights(pairs, device)

    # The packed pass.
    try:
        with errors_refused(), _checkpointing(adapted):
            ours = _packed(adapted, layout, flat, pairs, signed_weights)
    finally:
        for stack in adapted.stacks.values():
            stack.adapters = None
        give_back()  # so that PEFT's passes find the memory

    # PEFT's pass, and under bfloat16 a second one with another attention, which shows the rounding.
    with wrapped_by_peft(base, layout, flat, adapted.lora) as wrapped:
        untrained = sorted(trainable(wrapped) - set(matrices_by_name(layout, flat)))
        if untrained:
            names = _modules(untrained)
            raise InputError(refusal(f"packed does not train {names} as PEFT does"))
        _refuse_router_loss(base)
        with errors_refused(), _checkpointing(adapted):
            theirs = peft_pass(wrapped, pairs, signed_weights, adapted.attention)
            is_bfloat16 = AUTOCAST.get(device, base.dtype) == torch.bfloat16
            eager = peft_pass(wrapped, pairs, signed_weights, "eager") if is_bfloat16 else None
    _compare(ours, theirs, eager)


@contextmanager
def _checkpointing(adapted: AdaptedBase) -> Iterator[None]:
    """Switches activation checkpointing on meanwhile, if the base is to be checked with it."""
    if not adapted.checkpointed:
        yield
        return
    for layer in checkpointed_layers(adapted.base):
        layer.training = True
    try:
        yield
    finally:
        switch_off(adapted.base.eval())


def _refuse_capped_logits(base: PreTrainedModel) -> None:
    """Raises InputError for a model that caps its logits, which a few pairs may not show."""
    config = base.config.get_text_config()
    for name in ("final_logit_softcapping", "attn_logit_softcapping"):
        if getattr(config, name, None):
            raise InputError(refusal(f"it caps its logits by {name}"))


def _refuse_router_loss(base: PreTrainedModel) -> None:
    """Raises InputError for a model to whose loss TRL would add that of its router."""
    config = base.config.get_text_config()
    # TRL adds it if the configuration can return the router's scores and has a weight for them.
    if hasattr(config, "output_router_logits") and getattr(config, "router_aux_loss_coef", None):
        raise InputError(
            refusal("its router has a loss of its own, which packed can't compute as TRL does")
        )


def _random_adapter(layout: Layout, device: str) -> Tensor:
    """Returns an adapter in which neither A nor B is zero, shape (size,)."""
    draw = torch.Generator().manual_seed(0)
    flat = torch.zeros(layout.size)
    for layer, a, b in layout.views(flat):
        a.copy_(torch.randn(a.shape, generator=draw) / math.sqrt(layer.inputs))
        b.copy_(torch.randn(b.shape, generator=draw) * _SPREAD)
    return flat.to(device)


def _signed_weights(pairs: Sequence[Pair], device: str) -> Tensor:
    """Returns the factor of each completion in the sum whose gradient is compared, shape (P, 2).

    As in a preference loss, the factors of chosen are positive and those of rejected negative. They
    also differ in size.
    """
    tokens = [[pair.chosen_tokens, pair.rejected_tokens] for pair in pairs]
    signs = torch.tensor([1.0, -0.7], device=device)
    return signs / torch.tensor(tokens, dtype=torch.float32, device=device)


def _packed(
    adapted: AdaptedBase,
    layout: Layout,
    flat: Tensor,
    pairs: Sequence[Pair],
    signed_weights: Tensor,
) -> Pass:
    """Runs a packed pass in which each pair has a trial, all with the adapter `flat`, (size,)."""
    # One copy of the adapter for each pair.
    root = math.sqrt(adapted.lora.alpha / adapted.lora.r)
    copies = (flat * root).to(compute_dtype(adapted.device)).repeat(len(pairs), 1)
    gradients = torch.zeros(copies.shape, device=flat.device)
    rows = collate([[pair] for pair in pairs], adapted.device)
    matrices = layout.views(copies.requires_grad_(True)), layout.views(gradients)
    for (layer, a, b), (_, a_gradient, b_gradient) in zip(*matrices, strict=True):
        adapted.stacks[layer].adapters = Adapters(
            a, b.detach(), a_gradient, b_gradient, rows.token_counts
        )
    # The pass. The copies' gradients add up to that of one adapter over all pairs.
    logps = completion_logps(adapted.base, rows)
    (logps * signed_weights).sum().backward()  # type: ignore[no-untyped-call]
    summed = matrices_by_name(layout, gradients.sum(dim=0) * root)
    return Pass(logps.detach() * signed_weights.abs(), summed)


def _compare(ours: Pass, theirs: Pass, eager: Pass | None) -> None:
    """Raises InputError if our pass differs from PEFT's by more than the tolerances.

    Under bfloat16 three times the difference of PEFT's two passes is allowed, as these differ only
    by rounding. Rounding averages out in a gradient's length along PEFT's gradient, so that
    tolerance stays.
    """
    # The log-probs.
    tolerance = _LOGPS_TOLERANCE
    if eager is not None:
        tolerance = max(tolerance, 3 * float((eager.logps - theirs.logps).abs().max()))
    difference = float((ours.logps - theirs.logps).abs().max())
    if not difference <= tolerance:
        raise InputError(
            refusal(f"packed log-probs differ from PEFT's by {difference:.2g} nats per token")
        )

    # Each matrix's gradient: how far it is from PEFT's, and how long it is along that one.
    largest = max(float(gradient.norm()) for gradient in theirs.gradients.values())
    wrong = []
    for name, gradient in theirs.gradients.items():
        own, norm = ours.gradients[name], float(gradient.norm())
        unit = norm + _SMALL_GRADIENT * largest
        tolerance = _GRADIENT_TOLERANCE
        if eager is not None:
            rounding = float((eager.gradients[name] - gradient).norm()) / unit
            tolerance = max(tolerance, 3 * rounding)
        is_near = float((own - gradient).norm()) <= tolerance * unit
        is_large = norm > _LARGE_GRADIENT * largest
        length = float((own * gradient).sum()) / norm**2 if is_large else 1.0
        if not (is_near and abs(length - 1) <= _LENGTH_TOLERANCE):
            wrong.append(name)
    if wrong:
        raise InputError(refusal(f"the gradients of {_modules(wrong)} differ from PEFT's"))


def _modules(names: Sequence[str]) -> str:
    """Returns the modules of the named matrices, each once for all layers of the model."""
    found = []
    for name in names:
        module = re.sub(r"\.(lora_|base_layer|modules_to_save).*", "", name.removeprefix(PREFIX))
        found.append(re.sub(r"^.*\.\d+\.", "", module))
    return ", ".join(dict.fromkeys(found))
