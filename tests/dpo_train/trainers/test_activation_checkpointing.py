"""Recomputing layers in the backward changes no number and keeps less memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers.modeling_layers import GradientCheckpointingLayer

from dpo_train import activation_checkpointing, memory, model
from dpo_train.config import TrainConfig
from dpo_train.config_base import override
from dpo_train.errors import InputError, OutOfMemory
from dpo_train.memory import NO_BOUNDS, MemoryBounds
from dpo_train.trainers import trl_memory, trl_session
from dpo_train.trainers.open import open_session
from dpo_train.trainers.packed import forward
from dpo_train.trainers.packed.engine import PackedEngine
from dpo_train.trainers.packed.session import _Shared
from dpo_train.trainers.trl_session import TrlSession

KINDS: dict[str, dict[str, Any]] = {
    "packed": {"trainer": "packed", "lora": {}},
    "trl with LoRA": {"lora": {}},
    "trl in full": {},
}


def trained(
    config: TrainConfig, prepared: Path, folder: Path, again: bool
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Return the losses of two reports, and the exported weights."""
    changes = {"optim.activation_checkpointing": again, "optim.learning_rate": 1e-3}
    session = open_session(override(config, changes), prepared, "cpu")
    try:
        losses = [session.advance().report["train/loss"] for _ in range(2)]
        session.export(folder)
    finally:
        session.close()
    (weights,) = folder.glob("*.safetensors")
    return losses, load_file(weights)


@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_are_those_without_it(
    kind: str,
    small_config: TrainConfig,
    small_prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    computed: list[bool] = []
    checkpoint = torch.utils.checkpoint.checkpoint

    def noted(*given: Any, **options: Any) -> Any:
        computed.append(torch.is_grad_enabled())
        return checkpoint(*given, **options)

    monkeypatch.setattr("transformers.modeling_utils.checkpoint", noted)
    config = override(small_config, KINDS[kind])
    plain, own = trained(config, small_prepared, tmp_path / "plain", again=False)
    assert not computed
    again, theirs = trained(config, small_prepared, tmp_path / "again", again=True)
    assert any(computed)
    assert again == pytest.approx(plain, rel=1e-6)
    for name, weight in own.items():
        torch.testing.assert_close(theirs[name], weight, atol=1e-6, rtol=1e-5)
    computed.clear()
    after, _ = trained(config, small_prepared, tmp_path / "after", again=False)
    assert after == plain
    assert not computed  # the next trial gets the base as it was loaded


def test_a_pass_keeps_less(small_config: TrainConfig, small_prepared: Path) -> None:
    config = override(small_config, KINDS["packed"])
    session = open_session(config, small_prepared, "cpu")
    assert _Shared._now is not None
    engine = _Shared._now.engine
    bytes_a_token = []
    for again in (False, True):
        engine._measured.clear()
        engine._token_bound._bytes_a_token = 0
        engine.join(override(config, {"optim.activation_checkpointing": again}))
        bytes_a_token.append(engine._token_bound._bytes_a_token)
    session.close()
    assert bytes_a_token[1] < 0.8 * bytes_a_token[0]  # one of two layers counts as recomputed


def test_what_is_counted_has_the_layer_that_is_computed_again(small_config: TrainConfig) -> None:
    base = model.load_base(small_config.model, "cpu").fresh(trained_in_full=True)
    ids = torch.arange(1, 60)[None]

    def forward() -> Any:
        return base(input_ids=ids, use_cache=False).logits

    whole = memory.kept_bytes(forward, base.parameters())[1]
    layers = activation_checkpointing.checkpointed_layers(base)
    estimated = activation_checkpointing.kept_bytes(forward, layers, base.parameters())
    kept = memory.kept_bytes(forward, base.parameters())[1]
    assert kept < whole
    assert estimated - kept == pytest.approx((whole - kept) / len(layers), rel=0.02)
    activation_checkpointing.switch_off(base)
    assert memory.kept_bytes(forward, base.parameters())[1] == whole


def test_a_model_without_such_layers_is_refused() -> None:
    with pytest.raises(InputError, match=r"^optim.activation_checkpointing: transformers can't"):
        activation_checkpointing.checkpointed_layers(torch.nn.Linear(1, 1))


@pytest.mark.parametrize("kind", ["trl with LoRA", "trl in full"])
def test_it_is_switched_on_where_memory_holds_no_pair_without_it(
    kind: str, small_config: TrainConfig, small_prepared: Path
) -> None:
    trial = override(small_config, KINDS[kind])
    plain, _ = losses_and_config(trial, small_prepared, NO_BOUNDS)
    again, config = losses_and_config(trial, small_prepared, MemoryBounds(host_bytes=0))
    assert config.optim.activation_checkpointing is True
    assert config.optim.pairs_at_once == 1
    assert again == pytest.approx(plain, rel=1e-5)
    never = override(trial, {"optim.activation_checkpointing": False})
    _, config = losses_and_config(never, small_prepared, MemoryBounds(host_bytes=0))
    assert config.optim.activation_checkpointing is False


def test_a_model_whose_layers_can_not_be_computed_again_trains_without_it(
    small_config: TrainConfig, small_prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trl_session, "can_be_checkpointed", lambda _: False)
    trial = override(small_config, KINDS["trl with LoRA"])
    _, config = losses_and_config(trial, small_prepared, MemoryBounds(host_bytes=0))
    assert config.optim.activation_checkpointing is None
    assert config.optim.pairs_at_once == 1


def test_a_member_of_a_group_that_runs_out_of_memory_answers_the_others(
    small_config: TrainConfig, small_prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They wait for what it has to say of how many pairs fit."""
    gathered: list[int] = []

    def too_much(*_: object) -> int:
        raise torch.OutOfMemoryError("out of memory")

    def gather(_: object, fitting: torch.Tensor) -> torch.Tensor:
        gathered.append(int(fitting))
        return fitting

    monkeypatch.setattr(trl_memory, "kept_bytes", too_much)
    monkeypatch.setattr(Accelerator, "gather", gather)
    session = open_session(override(small_config, KINDS["trl with LoRA"]), small_prepared, "cpu")
    session.close()
    assert gathered == [0, 0]  # without activation checkpointing, and with it


def losses_and_config(
    trial: TrainConfig, prepared: Path, memory: MemoryBounds
) -> tuple[float, TrainConfig]:
    """Return the loss of the first report, and the configuration that the session uses."""
    session = open_session(trial, prepared, "cpu", memory=memory)
    assert isinstance(session, TrlSession)
    try:
        return session.advance().report["train/loss"], session._config
    finally:
        session.close()


def test_a_packed_engine_switches_it_on_where_memory_holds_no_pair_without_it(
    small_config: TrainConfig, small_prepared: Path
) -> None:
    trial = override(small_config, KINDS["packed"])
    losses = {}
    for bound in (None, 0):
        engine = PackedEngine(trial.model, small_prepared, "cpu", MemoryBounds(host_bytes=bound))
        losses[bound] = first_losses(engine, trial)
        assert engine.is_short_of_memory == (bound == 0)
        engine.close()
    assert losses[0] == pytest.approx(losses[None], rel=1e-5, abs=1e-5)
    never = override(trial, {"optim.activation_checkpointing": False})
    engine = PackedEngine(trial.model, small_prepared, "cpu", MemoryBounds(host_bytes=0))
    engine.join(never)
    assert not engine.is_short_of_memory
    engine.close()


def test_a_packed_engine_switches_it_on_when_a_pass_over_one_pair_runs_out_of_memory(
    small_config: TrainConfig, small_prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = override(small_config, KINDS["packed"])
    engine = PackedEngine(trial.model, small_prepared, "cpu")
    plain = first_losses(engine, trial)

    def scarce(base: Any, rows: Any) -> torch.Tensor:
        logps: torch.Tensor = forward.completion_logps(base, rows)
        layers = [each for each in base.modules() if isinstance(each, GradientCheckpointingLayer)]
        if logps.requires_grad and not any(layer.training for layer in layers):
            raise torch.OutOfMemoryError("out of memory")
        return logps

    monkeypatch.setattr("dpo_train.trainers.packed.engine.completion_logps", scarce)
    assert first_losses(engine, trial) == pytest.approx(plain, rel=1e-5, abs=1e-5)
    assert engine.is_short_of_memory
    never = override(trial, {"optim.activation_checkpointing": False})
    engine.close()
    engine = PackedEngine(trial.model, small_prepared, "cpu")
    with pytest.raises(OutOfMemory, match="take optim.activation_checkpointing: false out"):
        first_losses(engine, never)
    engine.close()


def first_losses(engine: PackedEngine, config: TrainConfig) -> list[float]:
    """Return the held-out losses after four steps."""
    trial = engine.join(config)
    while trial.step < 4:
        engine.step([trial])
    (values,) = engine.evaluate([trial])
    assert values is not None
    return [float(values["loss"].mean()), float(values["margin"].mean())]
