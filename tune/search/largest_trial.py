"""Finds the trial of a search space that takes most memory."""

from __future__ import annotations

from typing import Any

from dpo_train.config import TrainConfig
from dpo_train.config_base import override
from dpo_train.errors import InputError
from tune.config.schema import SearchConfig

_LARGER = ("lora.r", "optim.batch_size", "optim.micro_batch_size")
"""Axes for which a larger value takes more memory."""
_LARGEST = {"optim.name": "adamw", "optim.activation_checkpointing": False}
"""Axes for which this value takes most memory."""


def largest_trial(config: SearchConfig) -> TrainConfig:
    """Return the trial that takes most memory, as far as its values go together."""
    trial = config.base_trial()
    for path in _LARGER:
        values = [value for value in _corners(config, path) if value is not None]
        if values and (path != "lora.r" or trial.lora is not None):
            try:
                trial = override(trial, {path: max(values)})
            except InputError:  # this value needs other values of other axes
                continue
    for path, largest in _LARGEST.items():
        if largest in _corners(config, path):
            trial = override(trial, {path: largest})
    return trial


def _corners(config: SearchConfig, path: str) -> list[Any]:
    return config.space[path].corners if path in config.space else []
