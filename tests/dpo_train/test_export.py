"""An exported folder equals the base's folder except for trained weights, and works anywhere."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from dpo_train import data, export, model, reference
from dpo_train.config import ModelConfig, TrainConfig
from dpo_train.config_base import override
from dpo_train.trainers.open import open_session
from tests.helpers.small_models import SMALL, save

STARCODER = transformers.Starcoder2Config(
    **SMALL, sliding_window=None, residual_dropout=0.1, embedding_dropout=0.1
)
TRAINERS: list[dict[str, Any]] = [
    {"trainer": "trl", "lora": None},
    {"trainer": "trl", "lora": {"r": 2}},
    {"trainer": "packed", "lora": {"r": 2}},
]


def exported(config: TrainConfig, base: str, folder: Path, **values: Any) -> Path:
    short = {"data.limit": 12, "optim.epochs": 1, "optim.warmup_pairs": 0}
    config = override(config, {"model.id": base, **short, **values})
    prepared = reference.plan(config, data.load_pairs(config.data), folder / "data", "cpu")
    session = open_session(config, prepared, "cpu")
    try:
        session.advance()
        session.export(folder / "out")
    finally:
        session.close()
    return folder / "out"


@pytest.mark.parametrize("values", TRAINERS)
def test_an_export_shows_nothing_of_what_the_process_did_before(
    small_config: TrainConfig, tmp_path: Path, values: dict[str, Any]
) -> None:
    base = save(STARCODER, tmp_path / "base")
    tokenizer = model.load_base(ModelConfig(id=str(base)), "cpu").tokenizer
    tokenizer(["a", "a longer text"], padding=True, truncation=True, max_length=3)
    out = exported(small_config, str(base), tmp_path, **values)
    (tmp_path / "new").touch()
    usual = stat.S_IMODE((tmp_path / "new").stat().st_mode)
    assert {path.name for path in out.iterdir() if stat.S_IMODE(path.stat().st_mode) != usual} == (
        set()
    )
    names = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
    if values["lora"] is None:
        names += ["config.json", "generation_config.json"]
    for name in names:
        assert (out / name).read_text() == (base / name).read_text(), name


@pytest.mark.parametrize("values", TRAINERS[1:])
def test_an_adapter_on_a_base_of_a_relative_path_works_from_another_folder(
    small_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: Any
) -> None:
    base = save(transformers.LlamaConfig(**SMALL), tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    out = exported(small_config, "./base", tmp_path, **values)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    written = json.loads((out / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == str(base)
    model.forget_base()
    policy, _ = export.load(out, "cpu")
    assert isinstance(policy, peft.PeftModel)
    assert os.listdir(out.parent / "elsewhere") == []


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_a_merged_export_of_tied_embeddings_has_the_adapters_numbers(
    small_config: TrainConfig, tmp_path: Path
) -> None:
    base = save(transformers.LlamaConfig(**SMALL, tie_word_embeddings=True), tmp_path / "base")
    lora = {"r": 2, "target_modules": ["embed_tokens", "q_proj"]}
    out = exported(small_config, str(base), tmp_path, **{"lora": lora, "optim.learning_rate": 0.1})
    ids = torch.tensor([[3, 4, 5, 6]])
    policy, _ = export.load(out, "cpu")
    with torch.no_grad():
        wanted = policy(ids).logits
    policy.unload()
    (tmp_path / "merged").mkdir()
    export.convert(out, tmp_path / "merged", merged=True, dtype="float32")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, wanted, rtol=1e-5, atol=1e-5)
        untrained = transformers.AutoModelForCausalLM.from_pretrained(base)(ids).logits
    assert (untrained - wanted).abs().max() > 1e-3


def trained_with(out: Path, attention: str) -> Path:
    """Change an export as if its trial had computed attention in this way."""
    manifest = json.loads((out / export.MANIFEST).read_text())
    manifest["config"]["model"]["attention"] = attention
    (out / export.MANIFEST).write_text(json.dumps(manifest))
    return out


@pytest.mark.parametrize("values", TRAINERS[:2])
def test_a_model_trained_with_flash_attention_on_a_gpu_is_converted_on_a_cpu(
    small_config: TrainConfig, tmp_path: Path, values: dict[str, Any]
) -> None:
    base = save(transformers.LlamaConfig(**SMALL), tmp_path / "base")
    out = trained_with(exported(small_config, str(base), tmp_path, **values), "flash_attention_2")
    (tmp_path / "converted").mkdir()
    export.convert(out, tmp_path / "converted", merged=True, dtype="float32")
    assert (tmp_path / "converted" / "model.safetensors").exists()


def test_fully_trained_weights_are_evaluated_with_their_training_attention(
    small_config: TrainConfig, tmp_path: Path
) -> None:
    base = save(transformers.LlamaConfig(**SMALL), tmp_path / "base")
    out = trained_with(exported(small_config, str(base), tmp_path, lora=None), "eager")
    policy, _ = export.load(out, "cpu")
    assert policy.config._attn_implementation == "eager"


def test_a_merged_export_keeps_the_dropout_of_the_base(
    small_config: TrainConfig, tmp_path: Path
) -> None:
    base = save(STARCODER, tmp_path / "base")
    out = exported(small_config, str(base), tmp_path, lora={"r": 2})
    (tmp_path / "merged").mkdir()
    export.convert(out, tmp_path / "merged", merged=True, dtype="float32")
    written = json.loads((tmp_path / "merged" / "config.json").read_text())
    names = ("attention_dropout", "residual_dropout", "embedding_dropout", "use_cache")
    assert [written[name] for name in names] == [0.1, 0.1, 0.1, True]
