"""Whether a packed pass trains a base as PEFT does: compared before the first trial trains.

Both get the same adapter, whose two halves are not zero, and the same pairs. What differs, and what
packed can't compute at all, is refused by name. So no list of architectures has to be right.
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
_SPREAD = 0.02
"""Standard deviation of the adapter's second half, which PEFT itself begins with zeros."""
_LOGPS_APART = 1e-4
"""In nats a token. Dense models in float32 agree to 2e-6."""
_SLOPES_APART = 1e-3
"""Of the norm of a matrix's gradient. Dense models in float32 agree to 1e-6."""
_SMALL = 1e-4
"""Of the largest norm of all: rounding shows in gradients that are smaller than this."""
_ALONG_APART = 0.15
"""By what share a gradient may be longer or shorter along PEFT's. A forgotten scale shows here."""
_SEEN = 0.01
"""Of the largest norm of all: in a smaller gradient rounding does not average out."""
_FORMAT = 3
"""The number of the packed pass: a check that an earlier one passed does not count."""
_REFERENCE_APART = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""By how many nats a token the packed forward may differ from the prepared reference pass, by the
type in which it is computed."""


@dataclass(frozen=True)
class AdaptedBase:
    """A base whose linear layers can hold packed adapters, and what PEFT would adapt of it."""

    base: PreTrainedModel
    stacks: Mapping[Layer, StackedLinear]
    layers: tuple[Layer, ...]
    lora: LoraConfig
    device: str
    attention: str
    """The attention that the base had before."""
    checkpointed: bool
    """Whether its layers are computed again in the backward; a check needs no more memory then."""


def compare_with_reference(base: PreTrainedModel, split: Split, device: str) -> None:
    """Compares the packed pass over some pairs with the reference's own, whatever the model may do
    that the packed one doesn't know. Raises InputError."""
    with torch.no_grad(), errors_refused():
        logps = completion_logps(base, collate([split.pairs[:4]], device)).cpu().numpy()
    apart = np.abs(logps - split.reference[:4]) / split.tokens[:4]
    if not apart.max() <= _REFERENCE_APART[AUTOCAST.get(device, base.dtype)]:
        raise InputError(
            refusal(f"its log-probs come out {apart.max():.2g} nats a token apart from its own")
        )


def check_once(prepared: Path, adapted: AdaptedBase, pairs: Sequence[Pair]) -> None:
    """`check` with the longest of the pairs and one of middle length, once for a base, the modules
    that get an adapter, and what computes them: a file in the prepared data says that it passed."""
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
    with suppress(OSError):  # a full disk costs the next engine a check
        mark.touch()


def _version(package: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(package)
    return None


def check(adapted: AdaptedBase, pairs: Sequence[Pair]) -> None:
    """Compares a packed pass over the pairs with PEFT's. Takes a forward and a backward of each.

    Where memory runs out, it starts again with activation checkpointing. Raises InputError that
    names what packed does not train as PEFT does.
    """
    try:
        _check(adapted, pairs)
    except Exception as error:
        can_save_memory = not adapted.checkpointed and can_be_checkpointed(adapted.base)
        if not (can_save_memory and is_out_of_memory(error)):
            raise
    else:
        return
    give_back()  # the error held the tensors of the pass until here
    _check(replace(adapted, checkpointed=True), pairs)


def _check(adapted: AdaptedBase, pairs: Sequence[Pair]) -> None:
    base, device = adapted.base, adapted.device
    _refuse_by_name(base)
    layout = Layout(adapted.layers, min(adapted.lora.r, _RANK))
    flat = _random_adapter(layout, device)
    shares = _shares(pairs, device)
    try:
        with errors_refused(), _checkpointing(adapted):
            ours = _packed(adapted, layout, flat, pairs, shares)
    finally:
        for stack in adapted.stacks.values():
            stack.adapters = None
        give_back()  # before PEFT's passes take theirs
    with wrapped_by_peft(base, layout, flat, adapted.lora) as wrapped:
        untrained = sorted(trainable(wrapped) - set(matrices_by_name(layout, flat)))
        if untrained:
            raise InputError(refusal(f"it does not train {_modules(untrained)} as PEFT does"))
        _refuse_router_loss(base)
        with errors_refused(), _checkpointing(adapted):
            theirs = peft_pass(wrapped, pairs, shares, adapted.attention)
            rough = AUTOCAST.get(device, base.dtype) == torch.bfloat16
            noise = peft_pass(wrapped, pairs, shares, "eager") if rough else None
    _compare(ours, theirs, noise)


@contextmanager
def _checkpointing(adapted: AdaptedBase) -> Iterator[None]:
    """Computes the layers again in a backward, if the base is to be checked so."""
    if not adapted.checkpointed:
        yield
        return
    for layer in checkpointed_layers(adapted.base):
        layer.training = True
    try:
        yield
    finally:
        switch_off(adapted.base.eval())


def _refuse_by_name(base: PreTrainedModel) -> None:
    """What a few pairs would not show, or not under bfloat16."""
    config = base.config.get_text_config()
    for name in ("final_logit_softcapping", "attn_logit_softcapping"):
        if getattr(config, name, None):
            raise InputError(refusal(f"{name} bends its logits"))


def _refuse_router_loss(base: PreTrainedModel) -> None:
    config = base.config.get_text_config()
    # As TRL decides it: a configuration that can return the router's scores, and a weight.
    if hasattr(config, "output_router_logits") and getattr(config, "router_aux_loss_coef", None):
        raise InputError(
            refusal("its router has a loss of its own, and a packed row holds a prompt once")
        )


def _random_adapter(layout: Layout, device: str) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    flat = torch.zeros(layout.size)
    for layer, a, b in layout.views(flat):
        a.copy_(torch.randn(a.shape, generator=draw) / math.sqrt(layer.inputs))
        b.copy_(torch.randn(b.shape, generator=draw) * _SPREAD)
    return flat.to(device)


def _shares(pairs: Sequence[Pair], device: str) -> Tensor:
    """What the sum is made of whose gradient is compared: (pairs, 2), as in a loss of preference
    chosen counts for and rejected against, each with another weight."""
    tokens = [[pair.chosen_tokens, pair.rejected_tokens] for pair in pairs]
    signs = torch.tensor([1.0, -0.7], device=device)
    return signs / torch.tensor(tokens, dtype=torch.float32, device=device)


def _packed(
    adapted: AdaptedBase, layout: Layout, flat: Tensor, pairs: Sequence[Pair], shares: Tensor
) -> Pass:
    """A packed pass of one trial for each pair, all with the same adapter."""
    root = math.sqrt(adapted.lora.alpha / adapted.lora.r)
    same = (flat * root).to(compute_dtype(adapted.device)).repeat(len(pairs), 1)
    slopes = torch.zeros(same.shape, device=flat.device)
    rows = collate([[pair] for pair in pairs], adapted.device)
    halves = layout.views(same.requires_grad_(True)), layout.views(slopes)
    for (layer, a, b), (_, a_slope, b_slope) in zip(*halves, strict=True):
        adapted.stacks[layer].adapters = Adapters(a, b.detach(), a_slope, b_slope)
        adapted.stacks[layer].token_counts = rows.token_counts
    logps = completion_logps(adapted.base, rows)
    (logps * shares).sum().backward()  # type: ignore[no-untyped-call]
    summed = matrices_by_name(layout, slopes.sum(dim=0) * root)
    return Pass(logps.detach() * shares.abs(), summed)


def _compare(ours: Pass, theirs: Pass, noise: Pass | None) -> None:
    """Under bfloat16 what is allowed is three times the difference of two attention kernels, and
    of a gradient's length along PEFT's, in which rounding averages out, a seventh."""
    allowed = _LOGPS_APART
    if noise is not None:
        allowed = max(allowed, 3 * float((noise.logps - theirs.logps).abs().max()))
    apart = float((ours.logps - theirs.logps).abs().max())
    if not apart <= allowed:
        raise InputError(
            refusal(f"its log-probs come out {apart:.2g} nats a token apart from PEFT's")
        )
    largest, wrong = max(float(slope.norm()) for slope in theirs.slopes.values()), []
    for name, slope in theirs.slopes.items():
        own, size = ours.slopes[name], float(slope.norm())
        most = _SLOPES_APART
        if noise is not None:
            rounding = float((noise.slopes[name] - slope).norm()) / (size + _SMALL * largest)
            most = max(most, 3 * rounding)
        is_near = float((own - slope).norm()) <= most * (size + _SMALL * largest)
        along = float((own * slope).sum()) / size**2 if size > _SEEN * largest else 1.0
        if not (is_near and abs(along - 1) <= _ALONG_APART):
            wrong.append(name)
    if wrong:
        raise InputError(refusal(f"the gradients of {_modules(wrong)} differ from PEFT's"))


def _modules(names: Sequence[str]) -> str:
    """The modules of trainable matrices, each named once for all layers of the model."""
    found = []
    for name in names:
        module = re.sub(r"\.(lora_|base_layer|modules_to_save).*", "", name.removeprefix(PREFIX))
        found.append(re.sub(r"^.*\.\d+\.", "", module))
    return ", ".join(dict.fromkeys(found))
