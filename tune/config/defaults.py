"""The defaults of a search that follow from its other fields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from dpo_train.config import TrainConfig

_PACKED_CPUS = 0.25
"""Eight trials in a step are only 1/7 faster than four, and each needs a process."""


def with_defaults(content: Any) -> Any:
    """Add the defaults that depend on other fields. What is no mapping is returned as it is.

    The frozen base of a LoRA is bfloat16 on a GPU, LoRA trials are packed where `packed` can train
    all of them, and packed trials share a CPU.
    """
    if not isinstance(content, dict):
        return content
    parts = [content.get(name) or {} for name in ("resources", "model", "space")]
    if not all(isinstance(part, dict) for part in parts):
        return content
    resources, model, space = parts
    # Where `lora` is an axis, it is null for some trials, which train all weights.
    is_lora = content.get("lora") is not None and "lora" not in space
    if is_lora and resources.get("gpus"):
        content = {**content, "model": {"dtype": "bfloat16", **model}}
    if is_lora and "trainer" not in content and _can_be_packed(content):
        content = {**content, "trainer": "packed"}
    if content.get("trainer") == "packed":
        content = {**content, "resources": {"cpus": _PACKED_CPUS, **resources}}
    return content


def _can_be_packed(content: Mapping[str, Any]) -> bool:
    """Return whether `trainer: packed` accepts every trial of the search."""
    space, resources = content.get("space") or {}, content.get("resources") or {}
    gpus = resources.get("gpus", 0)
    if not isinstance(gpus, int | float) or gpus > 1:
        return False
    if any(path == "optim.name" or path.startswith("trl.") for path in space):
        return False
    try:
        for trial in _trials(content):
            TrainConfig.model_validate(trial)
    except ValidationError:  # any other fault is reported when the search itself is validated
        return False
    return True


def _trials(content: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the fields of a trial: as they are, and with each loss that is searched."""
    trial = {name: content[name] for name in TrainConfig.model_fields if name in content}
    yield {**trial, "trainer": "packed"}
    axis, dpo = (content.get("space") or {}).get("dpo.loss"), content.get("dpo") or {}
    losses = axis.get("choice") if isinstance(axis, dict) else None
    for loss in losses if isinstance(losses, list) and isinstance(dpo, dict) else []:
        yield {**trial, "trainer": "packed", "dpo": {**dpo, "loss": loss}}
