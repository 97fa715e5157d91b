"""A base in 4 or 8 bits: all trainers compute the same with it, and exports don't depend on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from transformers import LlamaConfig

from dpo_train import data, export, extras, memory, model, quantization, reference
from dpo_train.config import DataConfig, LoraConfig, ModelConfig, TrainConfig
from dpo_train.config_base import override
from dpo_train.errors import InputError
from dpo_train.pass_memory import pass_bytes
from dpo_train.reference_pass.model_checks import ModelChecks
from dpo_train.row_lengths import PairLength
from dpo_train.trainers.open import open_session
from tests.helpers import small_models

KINDS = ("nf4", "int8")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = LlamaConfig(**{**small_models.SMALL, "hidden_size": 64})
    return small_models.save(config, tmp_path_factory.mktemp("llama") / "model")


@pytest.fixture(scope="module")
def prepared(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Map each kind of quantisation to its folder of prepared data."""
    root = tmp_path_factory.mktemp("prepared")
    return {kind: prepare(trial(llama, kind), root) for kind in KINDS}


def trial(llama: Path, kind: str | None, **changes: Any) -> TrainConfig:
    config = TrainConfig(
        model=ModelConfig.model_validate({"id": str(llama), "quantization": kind}),
        data=DataConfig(limit=30),
        lora=LoraConfig(r=4, alpha=8),
        eval_every_pairs=8,
    )
    usual = {"optim.learning_rate": 1e-2, "optim.warmup_pairs": 0, "optim.batch_size": 4}
    return override(config, usual | changes)


def prepare(config: TrainConfig, root: Path) -> Path:
    folder = reference.plan(config, data.load_pairs(config.data), root, "cpu")
    reference.prepare(folder)
    return folder


def trained(config: TrainConfig, folder: Path, out: Path) -> dict[str, float]:
    session = open_session(config, folder, "cpu")
    try:
        report = session.advance().report
        session.export(out)
    finally:
        session.close()
    return report


@pytest.mark.parametrize("kind", KINDS)
def test_packed_and_trl_agree(
    kind: str, llama: Path, prepared: dict[str, Path], tmp_path: Path
) -> None:
    config = trial(llama, kind)
    ours = trained(override(config, {"trainer": "packed"}), prepared[kind], tmp_path / "packed")
    theirs = trained(config, prepared[kind], tmp_path / "trl")
    assert abs(theirs["eval/margin"]) > 0.01
    for name in ("train/loss", "eval/loss", "eval/margin", "eval/drift", "eval/nll"):
        assert ours[name] == pytest.approx(theirs[name], abs=1e-3), name


@pytest.mark.parametrize("kind", KINDS)
def test_packed_is_compared_with_peft(
    kind: str, llama: Path, prepared: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = quantization.QuantizedLinear.whole_weight
    calls = 0

    def wrong_at_times(layer: quantization.QuantizedLinear) -> torch.Tensor:
        """Return other weights at every second call, so forward and backward differ."""
        nonlocal calls
        calls += 1
        return whole(layer) * (1 if calls % 2 else 1.5)

    for mark in prepared[kind].glob("packed-*.checked"):
        mark.unlink()
    monkeypatch.setattr(quantization.QuantizedLinear, "whole_weight", wrong_at_times)
    monkeypatch.setattr("dpo_train.trainers.packed.engine.compare_with_reference", lambda *_: None)
    with pytest.raises(InputError, match=r"trainer: packed can't train this model"):
        open_session(trial(llama, kind, trainer="packed"), prepared[kind], "cpu")
    model.forget_base()


def test_a_layer_computes_as_bitsandbytes_does() -> None:
    torch.manual_seed(0)
    own = bitsandbytes.nn.Linear4bit(64, 32, compute_dtype=torch.float32, quant_type="nf4")
    own.weight = bitsandbytes.nn.Params4bit(torch.randn(32, 64), False, quant_type="nf4")
    own = own.to("cpu").requires_grad_(False)
    ours = quantization.QuantizedLinear(own, own.weight, torch.float32)
    x = torch.randn(5, 64, requires_grad=True)
    y = own(x)
    (slope,) = torch.autograd.grad(y.square().sum(), x)
    torch.testing.assert_close(ours(x), y)
    torch.testing.assert_close(torch.autograd.grad(ours(x).square().sum(), x)[0], slope)


def test_eight_bits_round_a_weight_by_less_than_one_part_in_200() -> None:
    weight = torch.randn(32, 64)
    packed = bitsandbytes.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    layer = torch.nn.Linear(64, 32)
    ours = quantization.QuantizedLinear(layer, packed.to("cpu"), torch.float32)
    largest = weight.abs().amax(dim=1, keepdim=True)
    assert bool(((ours.whole_weight() - weight).abs() <= largest / 200).all())


@pytest.mark.parametrize("kind", KINDS)
def test_exports_go_onto_the_published_base(
    kind: str, llama: Path, prepared: dict[str, Path], tmp_path: Path
) -> None:
    trained(trial(llama, kind), prepared[kind], tmp_path / "adapter")
    saved = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == str(llama)
    assert not [name for name, value in saved.items() if "quant" in name and value]
    (tmp_path / "merged").mkdir()
    export.convert(tmp_path / "adapter", tmp_path / "merged", merged=True, dtype="float32")
    merged = model.load_base(ModelConfig(id=str(tmp_path / "merged")), "cpu").model
    with_adapter, _ = export.load(tmp_path / "adapter", "cpu", as_published=True)
    quantized, _ = export.load(tmp_path / "adapter", "cpu")
    ids = torch.arange(1, 40)[None]
    with torch.no_grad():
        logits = merged.eval()(ids).logits
        torch.testing.assert_close(with_adapter(ids).logits, logits, atol=1e-4, rtol=1e-4)
        assert (quantized(ids).logits - logits).abs().max() > 1e-3
    model.forget_base()


def test_the_reference_of_a_quantised_base_is_another(llama: Path, tmp_path: Path) -> None:
    pairs = data.load_pairs(trial(llama, None).data)
    folders = {
        reference.plan(trial(llama, kind), pairs, tmp_path, "cpu") for kind in (None, *KINDS)
    }
    assert len(folders) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_the_estimate_counts_the_bytes_of_quantised_weights(kind: str, llama: Path) -> None:
    config = trial(llama, kind)
    base = model.load_base(config.model, "cpu").model
    linear = [each for each in base.modules() if isinstance(each, quantization.QuantizedLinear)]
    scales = [scale for layer in linear for scale in _scales(layer.weight)]
    held = sum(each.nbytes for each in (*base.parameters(), *scales))
    pair = PairLength(prompt=20, chosen=12, rejected=9)
    estimated = pass_bytes(base.config, config, pair, 1, "cpu").weights
    assert estimated == pytest.approx(held, rel=0.01)
    own = sum(each.nbytes for each in (*(layer.weight for layer in linear), *scales))
    assert memory.mapped_bytes(base) == held - own
    model.forget_base()


def _scales(weight: Any) -> list[torch.Tensor]:
    if weight.dtype == torch.int8:
        return [weight.SCB]
    return [weight.quant_state.absmax, weight.quant_state.state2.absmax]


def test_full_fine_tuning_is_refused() -> None:
    with pytest.raises(InputError, match=r"weights in nf4 can't be trained in full; add `lora: "):
        override(TrainConfig(), {"model.quantization": "nf4"})


def test_what_loads_no_model_refuses_it() -> None:
    with pytest.raises(InputError, match=r"`trainer: simulated` loads no model; take it out"):
        override(
            TrainConfig(),
            {"model.quantization": "nf4", "lora": {}, "trainer": "simulated"},
        )


def test_without_bitsandbytes_it_is_refused(monkeypatch: pytest.MonkeyPatch, llama: Path) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda _: None)
    with pytest.raises(
        InputError,
        match=r"model.quantization: nf4 needs bitsandbytes; type `.* 'dpo-tune\[quan",
    ):
        model.load_base(trial(llama, "nf4").model, "cpu")


def test_a_base_that_is_published_quantised_is_refused(llama: Path, tmp_path: Path) -> None:
    for file in llama.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    content = json.loads((tmp_path / "config.json").read_text())
    content["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "config.json").write_text(json.dumps(content))
    base = ModelConfig(id=str(tmp_path), quantization="nf4")
    with pytest.raises(InputError, match=r"published quantised; take model.quantization out"):
        ModelChecks(base, model.load_tokenizer(base))
