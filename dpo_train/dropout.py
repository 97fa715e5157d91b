"""Dropout is off in the whole model: the reference is computed without it, and the log-ratios of
DPO need no noise.

TRL sets `nn.Dropout` to 0. Many models (Granite, StarCoder2, OPT, Falcon) hold it as a number, in
their modules or in their configuration, which TRL does not see.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_KEPT = "dropout_as_configured"
"""The attribute of a model that keeps the values of its configuration."""


def switch_off(model: Any) -> None:
    """Sets every dropout of a model to 0, in its modules and in its configuration."""
    import torch  # slow to import

    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name in _names(vars(module)):
            setattr(module, name, 0.0)
    kept = []
    for config in (model.config, model.config.get_text_config()):
        for name in _names(vars(config)):
            kept.append((config, name, getattr(config, name)))
            setattr(config, name, 0.0)
    setattr(model, _KEPT, kept)


@contextmanager
def as_configured(model: Any) -> Iterator[None]:
    """Within `with`, the configuration of a model is the one that it came with, to be saved."""
    kept = getattr(model, _KEPT, [])
    for config, name, value in kept:
        setattr(config, name, value)
    try:
        yield
    finally:
        for config, name, _ in kept:
            setattr(config, name, 0.0)


def _names(values: dict[str, Any]) -> list[str]:
    """Names such as attention_dropout, resid_pdrop or hidden_dropout_prob, where they aren't 0."""
    return [
        name
        for name, value in values.items()
        if ("dropout" in name or name.endswith("pdrop"))
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and value
    ]
