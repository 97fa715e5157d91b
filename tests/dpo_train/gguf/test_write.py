"""llama.cpp computes the same from our files as transformers, or the model is refused."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from gguf import GGUFReader

from dpo_train.errors import InputError
from dpo_train.gguf import write
from dpo_train.gguf.tensors import Quantization
from tests.helpers.gguf_models import SIZES, model, small, source, tokenizer, written
from tests.helpers.llama_cpp import LlamaCpp

SLOWED = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
UNLIKE: dict[str, Any] = {**SIZES, "vocab_size": 1030, "tie_word_embeddings": False}
CONFIGS = {
    "Llama": lambda: transformers.LlamaConfig(**UNLIKE),
    "Llama with tied embeddings": lambda: transformers.LlamaConfig(
        **{**UNLIKE, "tie_word_embeddings": True}
    ),
    "Llama 3": lambda: transformers.LlamaConfig(**UNLIKE, rope_parameters=SLOWED),
    "Llama with large heads": lambda: transformers.LlamaConfig(**UNLIKE, head_dim=32),
    "Qwen2": lambda: transformers.Qwen2Config(**UNLIKE),
    "Qwen3": lambda: transformers.Qwen3Config(**UNLIKE, head_dim=32),
}
TOKENS = torch.randint(0, 1000, (1, 200), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("quantization", "near"), [("f16", 0.05), ("q8_0", 1.0)])
@pytest.mark.parametrize("name", CONFIGS)
def test_log_probs_of_llama_cpp_are_those_of_transformers(
    tmp_path: Path, name: str, quantization: Quantization, near: float
) -> None:
    network = model(CONFIGS[name]())
    with torch.no_grad():
        theirs = network(TOKENS).logits[0].log_softmax(-1)
    with LlamaCpp(written(source(network), tmp_path, quantization)) as llama:
        ours = torch.tensor(llama.logits(TOKENS[0].tolist())).log_softmax(-1)
    assert theirs.std() > 1, "the model prefers no token"
    assert (ours - theirs).abs().max() < near


def stored(path: Path) -> dict[str, tuple[str, bytes]]:
    """Return the type and the bytes of each tensor of a file."""
    return {
        tensor.name: (tensor.tensor_type.name, tensor.data.tobytes())
        for tensor in GGUFReader(path).tensors
    }


def test_a_model_folder_is_written_as_the_model_in_memory_is(tmp_path: Path) -> None:
    what = small()
    in_memory = stored(written(what, tmp_path))
    folder = tmp_path / "model"
    network = transformers.LlamaForCausalLM(what.config)
    network.load_state_dict(dict(what.weights))
    network.save_pretrained(folder, max_shard_size="100KB")
    what.tokenizer.save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert stored(written(write.from_folder(folder), tmp_path)) == in_memory


def test_no_row_of_weights_that_fits_no_block_is_quantised(tmp_path: Path) -> None:
    sizes = {**SIZES, "intermediate_size": 40, "vocab_size": 1024}
    network = model(transformers.LlamaConfig(**sizes))
    kinds = stored(written(source(network), tmp_path, "q8_0"))
    assert kinds["blk.0.ffn_down.weight"][0] == "F16"
    assert kinds["blk.0.ffn_up.weight"][0] == "Q8_0"
    assert kinds["blk.0.ffn_norm.weight"][0] == "F32"


def test_what_a_model_samples_with_by_default_is_in_the_file(tmp_path: Path) -> None:
    sampled = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 20}
    with LlamaCpp(written(small(**sampled), tmp_path)) as llama:
        assert llama.metadata("general.sampling.temp") == "0.700000"
        assert llama.metadata("general.sampling.top_p") == "0.900000"
        assert llama.metadata("general.sampling.top_k") == "20"


def test_the_chat_template_is_in_the_file(tmp_path: Path) -> None:
    with LlamaCpp(written(small(), tmp_path)) as llama:
        assert llama.metadata("tokenizer.chat_template") == tokenizer().chat_template


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (transformers.GPT2Config(), "the model is gpt2, and only Llama, Qwen2, Qwen3 can be"),
        (
            transformers.LlamaConfig(hidden_act="gelu"),
            "hidden_act: gelu, and llama.cpp supports only",
        ),
        (transformers.LlamaConfig(attention_bias=True), "attention_bias: True"),
        (transformers.LlamaConfig(mlp_bias=True), "mlp_bias: True"),
        (transformers.Qwen2Config(use_sliding_window=True), "use_sliding_window: True"),
        (transformers.Qwen3Config(attention_bias=True), "attention_bias: True"),
        (transformers.Qwen2Config(rope_parameters=SLOWED), "rope_type: llama3"),
        (
            transformers.LlamaConfig(
                rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
            ),
            "rope_type: linear, and llama.cpp supports only default or llama3 in a Llama",
        ),
        (
            transformers.LlamaConfig(architectures=["LlamaForSequenceClassification"]),
            "the model is LlamaForSequenceClassification",
        ),
        (transformers.LlamaConfig(quantization_config={"bits": 4}), "the model is quantised"),
    ],
)
def test_a_model_that_llama_cpp_would_compute_otherwise_is_refused_by_name(
    config: transformers.PretrainedConfig, message: str
) -> None:
    with pytest.raises(InputError, match=f"gguf: .*{message}"):
        write.refuse_unwritable(config, transformers.GenerationConfig(), tokenizer())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model.layers.0.mlp.up_proj.weight", None, "lacks the weights blk.0.ffn_up.weight"),
        ("model.layers.0.mlp.up_proj.bias", torch.ones(96), "has the weights blk.0.ffn_up.bias"),
        ("score.weight", torch.ones(2, 64), "weights score.weight, which llama.cpp's llama"),
        ("model.norm.weight", torch.full((64,), math.nan), "model.norm.weight holds nan"),
        ("model.layers.0.mlp.up_proj.weight", torch.full((96, 64), 7e4), "holds 70000.*q8_0`"),
    ],
)
def test_weights_that_are_not_those_of_the_model_are_refused(
    tmp_path: Path, name: str, value: torch.Tensor | None, message: str
) -> None:
    what = small()
    weights = {**what.weights, name: value} if value is not None else dict(what.weights)
    if value is None:
        del weights[name]
    spoilt = write.Source(what.config, what.generation, what.tokenizer, weights)
    with pytest.raises(InputError, match=message):
        write.write(spoilt, tmp_path, "x", "f16")


def test_a_disk_without_space_is_noticed_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "free_bytes", lambda _: 1000)
    with pytest.raises(InputError, match="the file takes .* GB free; name another folder"):
        write.write(small(), tmp_path, "x", "f16")
    assert list(tmp_path.iterdir()) == []


def test_what_to_install_is_said_where_the_package_is_lacking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    what = small()
    monkeypatch.setattr(write, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"type `.* -m pip install 'dpo-tune\[gguf\]'`"):
        write.write(what, tmp_path, "x", "f16")
