"""AdamW in 8 bits: the memory of its moments, how a saved trial goes on, where it is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.optim.optimizer import Optimizer8bit

from dpo_train import extras
from dpo_train.config import TrainConfig
from dpo_train.config_base import override
from dpo_train.errors import InputError
from dpo_train.optimizers import moment_bytes
from dpo_train.pass_memory import pass_bytes
from dpo_train.row_lengths import PairLength
from dpo_train.trainers.open import open_session
from tests.dpo_train.test_footprint import architecture
from tests.helpers.training import goes_on_to_the_last_bit


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit"])
def test_moments_take_what_is_said(
    name: str, small_config: TrainConfig, small_prepared: Path
) -> None:
    trial = override(small_config, {"optim.name": name})
    session: Any = open_session(trial, small_prepared, "cpu")
    session.advance()
    policy, optimizer = session._trainer.model, session._trainer.optimizer.optimizer
    assert isinstance(optimizer, Optimizer8bit) == (name == "adamw_8bit")
    held = sum(
        value.nbytes
        for weight, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, torch.Tensor) and value.numel() > 1 and "qmap" not in key
    )
    estimated = moment_bytes(trial.optim.name, policy.modules())
    session.close()
    assert estimated == pytest.approx(held, rel=0.01)
    pair = PairLength(prompt=20, chosen=12, rejected=9)
    assert pass_bytes(architecture(), trial, pair, 1, "cpu").moments == pytest.approx(estimated)


def test_moments_in_8_bits_take_a_quarter() -> None:
    layers = [torch.nn.Linear(64, 64, bias=False)]
    assert moment_bytes("adamw", layers) == 8 * 64 * 64
    assert moment_bytes("adamw_8bit", layers) == pytest.approx(2 * 64 * 64, rel=0.02)
    assert moment_bytes("adamw_8bit", [torch.nn.Embedding(64, 64)]) == 8 * 64 * 64
    assert moment_bytes("adamw_8bit", [torch.nn.Linear(63, 64, bias=False)]) == 8 * 63 * 64


def test_a_saved_trial_goes_on_to_the_last_bit(
    small_config: TrainConfig, small_prepared: Path, tmp_path: Path
) -> None:
    trial = override(small_config, {"optim.name": "adamw_8bit", "optim.epochs": 2})
    goes_on_to_the_last_bit(trial, small_prepared, tmp_path)


def test_a_paged_one_needs_a_gpu(small_config: TrainConfig, small_prepared: Path) -> None:
    trial = override(small_config, {"optim.name": "paged_adamw_8bit"})
    with pytest.raises(InputError, match=r"works on a GPU only; type `name: adamw_8bit`"):
        open_session(trial, small_prepared, "cpu")


def test_without_bitsandbytes_it_is_refused(
    small_config: TrainConfig, small_prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda _: None)
    trial = override(small_config, {"optim.name": "adamw_8bit"})
    with pytest.raises(InputError, match=r"optim.name: adamw_8bit needs bitsandbytes; type"):
        open_session(trial, small_prepared, "cpu")


@pytest.mark.parametrize("trainer", ["packed", "simulated"])
def test_other_trainers_refuse_it(trainer: str) -> None:
    changes = {"trainer": trainer, "lora": {}, "optim.name": "adamw_8bit"}
    with pytest.raises(InputError, match=r"optim.name: adamw_8bit needs `trainer: trl`"):
        override(TrainConfig(), changes)
