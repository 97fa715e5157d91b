"""Tiny models with random weights, and changed tokenizers, to be written as GGUF."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer

from dpo_train import sample
from dpo_train.gguf.tensors import Quantization
from dpo_train.gguf.write import Source, file_name, write

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
CHATML = (sample.MODEL / "chat_template.jinja").read_text()
TokenizerJson = dict[str, Any]


def tokenizer(
    change: Callable[[TokenizerJson], None] = lambda _: None, **settings: Any
) -> transformers.PreTrainedTokenizerFast:
    """Return the sample's tokenizer after a change to its tokenizer.json."""
    content = json.loads((sample.MODEL / "tokenizer.json").read_text())
    change(content)
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": CHATML}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)), **{**names, **settings}
    )


def model(config: transformers.PretrainedConfig) -> Any:
    """Return a model of this configuration, with weights as large as trained ones."""
    config.pad_token_id = config.bos_token_id = config.eos_token_id = None
    network = transformers.AutoModelForCausalLM.from_config(config)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            scale = 0.15 if weight.ndim > 1 else 0.3
            weight.copy_(torch.randn(weight.shape, generator=draw) * scale + ("norm" in name))
    return network.eval()


def source(network: Any, reader: Any = None, **generation: Any) -> Source:
    """Return the source for a GGUF file, made in memory."""
    stated = transformers.GenerationConfig(**generation)
    return Source(network.config, stated, reader or tokenizer(), network.state_dict())


def small(reader: Any = None, rows: int | None = None, **generation: Any) -> Source:
    """Return a Llama, for tests in which the numbers do not matter."""
    reader = reader or tokenizer()
    sizes = {**SIZES, "vocab_size": rows or len(reader), "tie_word_embeddings": True}
    return source(model(transformers.LlamaConfig(**sizes)), reader, **generation)


def written(what: Source, folder: Path, quantization: Quantization = "f16") -> Path:
    """Write the GGUF file into a folder and return its path."""
    write(what, folder, "tiny", quantization)
    return folder / file_name("tiny", quantization)
