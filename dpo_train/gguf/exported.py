"""Writes an exported folder as a GGUF file. An adapter is merged with its base first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dpo_train import export, model_source
from dpo_train.config import ModelConfig, TrainConfig
from dpo_train.gguf import write
from dpo_train.gguf.tensors import Quantization
from dpo_train.model import load_tokenizer


def write_exported(
    exported: Path, folder: Path, name: str, quantization: Quantization
) -> list[str]:
    """Write the GGUF file of an exported folder, and its Modelfile, into a folder.

    A model is read from its files tensor by tensor. An adapter is merged in memory, in float32.
    Returns notes for the user on how llama.cpp and Ollama differ. Raises InputError.
    """
    manifest = json.loads((exported / export.MANIFEST).read_text())
    if manifest["kind"] == "full":
        return write.write(write.from_folder(exported), folder, name, quantization)
    from transformers import AutoTokenizer  # slow to import

    config = TrainConfig.model_validate(manifest["config"])
    tokenizer = AutoTokenizer.from_pretrained(exported, trust_remote_code=False)
    _refuse(model_source.architecture(config.model), tokenizer)  # merging would take minutes
    merged = export.merged_model(exported)
    source = write.Source(merged.config, merged.generation_config, tokenizer, merged.state_dict())
    return write.write(source, folder, name, quantization)


def refuse_unwritable_base(config: ModelConfig) -> None:
    """Raise InputError if models that are trained from this base can't be written as GGUF."""
    _refuse(model_source.architecture(config), load_tokenizer(config, fetched=False))


def _refuse(config: Any, tokenizer: Any) -> None:
    from transformers import GenerationConfig  # slow to import

    write.refuse_unwritable(config, GenerationConfig.from_model_config(config), tokenizer)
