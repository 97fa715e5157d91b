"""Our fields and TRL's names for them, compared by what a change of ours changes there."""

import json
from pathlib import Path
from typing import Any

import pytest

from dpo_train.config import TrainConfig
from dpo_train.config_base import override
from dpo_train.config_fields import field_paths
from dpo_train.config_names import NAMES_IN_TRL
from dpo_train.config_trl import TABLE
from dpo_train.trainers.process_group import ProcessGroup
from dpo_train.trainers.trl_arguments import trl_arguments

BASE = {"optim.micro_batch_size": 4, "optim.warmup_pairs": 1}
"""A batch of two passes, and a warm-up that has one step whatever the batch is."""
CHANGED: dict[str, Any] = {
    "optim.name": "adamw_8bit",
    "optim.batch_size": 10,
    "optim.micro_batch_size": 2,
    "optim.epochs": 3,
    "optim.schedule": "cosine",
    "optim.warmup_pairs": 100,
    "optim.beta1": 0.8,
    "optim.beta2": 0.98,
    "optim.epsilon": 1e-6,
    "dpo.loss": "ipo",
}
FOLLOWS = {"optim.micro_batch_size": {"gradient_accumulation_steps"}}
"""What changes too, because the batch stays the same."""


def arguments(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    config = override(TrainConfig(), {**BASE, **values})
    return dict(trl_arguments(config, folder, "cpu", ProcessGroup()).to_dict())


def test_every_name_is_one_of_trls_and_another_than_ours() -> None:
    known = json.loads(TABLE.read_text())
    for path, names in NAMES_IN_TRL.items():
        assert path in field_paths(TrainConfig)
        assert set(names) <= set(known)
        assert names != (path.split(".")[-1],)


@pytest.mark.parametrize("path", NAMES_IN_TRL)
def test_a_field_of_ours_is_handed_on_under_its_name_in_trl(path: str, tmp_path: Path) -> None:
    before, after = arguments(tmp_path, {}), arguments(tmp_path, {path: CHANGED[path]})
    changed = {name for name in before if before[name] != after[name]}
    names = set(NAMES_IN_TRL[path])
    assert names <= changed <= names | FOLLOWS.get(path, set())
