"""A base that can't train on these rows is refused before anything is trained, in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from safetensors.torch import load_file, save_file

from dpo_train import data, reference
from dpo_train.config import DataConfig, ModelConfig, TrainConfig
from dpo_train.errors import InputError
from dpo_train.model import load_base
from dpo_train.reference_pass.tokens import check_rows, tokenised
from tests.helpers.preference_data import lines, texts
from tests.helpers.small_models import SMALL, save

SHORT = {**SMALL, "max_position_embeddings": 20}
"""Fewer positions than the longest row has tokens."""
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8,
    "long_factor": [2.0] * 8, "original_max_position_embeddings": 20,
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(transformers.LlamaConfig(**SMALL), tmp_path_factory.mktemp("llama") / "model")


def planned(base: Path, folder: Path) -> Path:
    rows = lines(texts)(folder)
    config = TrainConfig(model=ModelConfig(id=str(base)), data=DataConfig(id=str(rows)))
    return reference.plan(config, data.load_pairs(config.data), folder / "data", "cpu")


def changed(base: Path, folder: Path, **values: Any) -> Path:
    """Return a copy of a model with other values in its config.json."""
    shutil.copytree(base, folder)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **values}))
    return folder


def with_adapter(base: Path, folder: Path) -> Path:
    shutil.copytree(base, folder)
    (folder / "adapter_config.json").write_text("{}")
    return folder


def adapter_alone(_: Path, folder: Path) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    return folder


def fewer_embeddings(_: Path, folder: Path) -> Path:
    save(transformers.LlamaConfig(**SMALL), folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(tokenizer.vocab_size - 1)
    model.save_pretrained(folder)
    return folder


def own_code(base: Path, folder: Path) -> Path:
    auto_map = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}
    changed(base, folder, model_type="own", auto_map=auto_map)
    (folder / "own.py").write_text("raise SystemExit('this code was run')\n")
    return folder


REFUSED: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "adapter beside": (with_adapter, "holds a whole model and an adapter"),
    "adapter alone": (adapter_alone, "is an adapter .* merge it into its base"),
    "fewer embeddings": (fewer_embeddings, "tokens, and the model has embeddings for"),
    "own code": (own_code, "needs Python code that comes with it, and such code is never run"),
    "gptq": (
        lambda base, folder: changed(
            base, folder, quantization_config={"quant_method": "gptq", "bits": 4}
        ),
        "is quantised and can't be loaded here .*pip install optimum",
    ),
    "unknown": (
        lambda base, folder: changed(base, folder, model_type="unheard"),
        "can't be loaded .*`unheard`",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_a_base_that_can_not_train_is_refused_by_the_pass_and_by_doctor(
    llama: Path, tmp_path: Path, kind: str
) -> None:
    make, message = REFUSED[kind]
    base = make(llama, tmp_path / "base")
    folder = planned(base, tmp_path)
    with pytest.raises(InputError, match=f"^model.id: .*{message}") as refused:
        tokenised(folder)
    assert "\n" not in str(refused.value)
    config = DataConfig(id=str(tmp_path / "rows.jsonl"))
    rows = [row for split in data.load_pairs(config).splits.values() for row in split]
    with pytest.raises(InputError, match=message):
        check_rows(ModelConfig(id=str(base)), rows, "refuse")


TOO_LONG: dict[str, tuple[transformers.PretrainedConfig, str]] = {
    "longrope": (
        transformers.Phi3Config(
            **SMALL, rope_parameters=LONGROPE, original_max_position_embeddings=20, pad_token_id=0
        ),
        "the RoPE of .* .longrope. changes",
    ),
    "dynamic": (
        transformers.LlamaConfig(**SHORT, rope_parameters=DYNAMIC),
        "the RoPE of .* .dynamic. changes",
    ),
    "gpt2": (
        transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=20),
        "has learned 20 positions",
    ),
    "opt": (
        transformers.OPTConfig(
            hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=20, word_embed_proj_dim=32,
        ),
        "has learned 20 positions",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", TOO_LONG)
def test_rows_past_what_a_model_knows_are_refused_with_the_length_to_type(
    tmp_path: Path, kind: str
) -> None:
    architecture, message = TOO_LONG[kind]
    base = save(architecture, tmp_path / "base")
    rows = lines(texts)(tmp_path)
    folders = []
    for most in (1024, 20):
        config = TrainConfig(
            model=ModelConfig(id=str(base)), data=DataConfig(id=str(rows), max_length_tokens=most)
        )
        pairs = data.load_pairs(config.data)
        folders.append(reference.plan(config, pairs, tmp_path / "data", "cpu"))
    with pytest.raises(InputError, match=f"{message}.*`data.max_length_tokens: 20`"):
        tokenised(folders[0])
    summary = tokenised(folders[1])
    assert set(summary.dropped) == {"longer than 20 tokens"}


def test_positions_that_are_computed_have_no_end(tmp_path: Path) -> None:
    base = save(transformers.LlamaConfig(**SHORT), tmp_path / "base")
    assert tokenised(planned(base, tmp_path)).dropped == {}


def test_an_added_token_without_an_embedding_is_refused_where_a_row_has_it(tmp_path: Path) -> None:
    """Gemma 3's tokenizer has such a token for images; its model for text has no embedding."""
    base = save(transformers.LlamaConfig(**SMALL), tmp_path / "base")
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<image>"])
    tokenizer.save_pretrained(base)
    assert tokenised(planned(base, tmp_path)).dropped == {}
    tokenizer.add_tokens(["answer"])
    tokenizer.save_pretrained(base)
    with pytest.raises(InputError, match="writes 'answer' as .* embeddings for"):
        tokenised(planned(base, tmp_path))


def test_a_generation_config_that_can_not_be_saved_is_mended_and_said(
    llama: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(llama, base)
    content = {"eos_token_id": 1, "temperature": 0.9, "top_p": 0.6, "max_new_tokens": 7}
    (base / "generation_config.json").write_text(json.dumps(content))
    (note,) = tokenised(planned(base, tmp_path)).notes
    assert note.endswith("have no effect, and exported models leave them out: temperature, top_p")
    generation = load_base(ModelConfig(id=str(base)), "cpu").model.generation_config
    generation.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "generation_config.json").read_text())
    assert (written["max_new_tokens"], written["eos_token_id"]) == (7, 1)
    assert "temperature" not in written


def test_weights_that_are_not_all_there_are_refused(llama: Path, tmp_path: Path) -> None:
    """transformers would initialise the missing weights at random."""
    base = tmp_path / "base"
    shutil.copytree(llama, base)
    weights = load_file(base / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lack 1 of .* model.layers.1.mlp.up_proj.weight"):
        load_base(ModelConfig(id=str(base)), "cpu")
