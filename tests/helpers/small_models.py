"""Writes small models of other architectures with random weights and the sample's tokenizer."""

from pathlib import Path
from typing import Any

import torch
import transformers

from dpo_train import export, model
from dpo_train.config import ModelConfig

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "attention_dropout": 0.1,
}
"""The sizes of a Llama-like configuration."""


def save(config: transformers.PretrainedConfig, folder: Path) -> Path:
    """Write a model of this configuration, after setting its vocabulary to the tokenizer's."""
    tokenizer = model.load_tokenizer(ModelConfig())
    torch.manual_seed(0)
    config.vocab_size = len(tokenizer)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, getattr(tokenizer, name))
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    export.save_tokenizer(tokenizer, folder)
    return folder
