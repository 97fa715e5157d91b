"""Makes the configuration of a packed trial for tests."""

from __future__ import annotations

from typing import Any

from dpo_train.config import TrainConfig
from dpo_train.config_base import override

DEFAULTS: dict[str, Any] = {
    "trainer": "packed",
    "lora": {"r": 4, "alpha": 8},
    "optim.learning_rate": 5e-4,
    "optim.batch_size": 8,
    "optim.warmup_pairs": 16,
}


def config(base: TrainConfig, **changes: Any) -> TrainConfig:
    """Return the configuration of a packed trial, with changes by path (`__` for a dot)."""
    return override(base, DEFAULTS | {k.replace("__", "."): v for k, v in changes.items()})
