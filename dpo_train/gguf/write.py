"""Writes a model as a GGUF file with a Modelfile. All checks come before the first write."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo_train.command_line import python_module
from dpo_train.errors import InputError
from dpo_train.gguf import architecture, modelfile, sampling, tensors, tokenizer, turns
from dpo_train.gguf.architecture import Architecture
from dpo_train.gguf.tensors import Quantization
from dpo_train.gguf.tokenizer import Vocabulary
from dpo_train.storage.disk import free_bytes

if TYPE_CHECKING:
    from torch import Tensor

_FILE_TYPES = {"f16": 1, "q8_0": 7}
"""GGUF's numbers for the type of most tensors of a file."""


@dataclass(frozen=True)
class Source:
    """A model of transformers to be written."""

    config: Any
    generation: Any
    tokenizer: Any
    weights: Mapping[str, Tensor]
    """By transformers' names; they may be mapped from files."""


def file_name(name: str, quantization: Quantization) -> str:
    """Return the name of the GGUF file. The Hub and Ollama read the quantisation from it."""
    return f"{name}-{quantization.upper()}.gguf"


def from_folder(folder: Path) -> Source:
    """Read a model folder; its weights are mapped. Raises InputError if it has no safetensors."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig  # slow to import

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    has_generation = (folder / "generation_config.json").is_file()
    weights = tensors.mapped(folder)
    if not weights:
        raise InputError(f"gguf: {folder} has no safetensors files")
    return Source(
        config,
        GenerationConfig.from_pretrained(folder)
        if has_generation
        else GenerationConfig.from_model_config(config),
        AutoTokenizer.from_pretrained(folder, trust_remote_code=False),
        weights,
    )


def refuse_unwritable(
    config: Any, generation: Any, tokenizer_: Any
) -> tuple[Architecture, Vocabulary]:
    """Return the architecture and vocabulary that a GGUF file will store.

    Raises InputError for a model that can't be written, and if the package gguf is not installed.
    """
    if find_spec("gguf") is None:
        raise InputError(
            "gguf: the package gguf is not installed; type "
            f"`{python_module('pip', 'install', 'dpo-tune[gguf]')}`"
        )
    described = architecture.describe(config)
    ends = sampling.ends(generation)
    return described, tokenizer.describe(tokenizer_, described.vocabulary, ends)


def write(source: Source, folder: Path, name: str, quantization: Quantization) -> list[str]:
    """Write the GGUF file and a Modelfile into a folder.

    It needs the memory of one tensor beside the source. Returns notes for the user on how llama.cpp
    and Ollama differ, a line each. Raises InputError for a model that can't be written, and if the
    disk has no space for it.
    """
    # Check the model and the disk.
    described, vocabulary = refuse_unwritable(source.config, source.generation, source.tokenizer)
    planned = tensors.plan(described, source.weights, quantization)
    need, free = sum(each.bytes for each in planned), free_bytes(folder)
    if need > free:
        raise InputError(
            f"gguf: the file takes {need / 1e9:.1f} GB, and {folder.parent} has "
            f"{free / 1e9:.1f} GB free; name another folder"
        )

    # Write the GGUF file: the header with all settings, then one tensor after the other.
    stated = sampling.defaults(source.generation)
    path = folder / file_name(name, quantization)
    writer = _header(path, described, vocabulary, quantization)
    _add_sampling(writer, stated)
    for each in planned:
        _add_plan(writer, each)
    with closing(writer):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for array in tensors.arrays(described, source.weights, planned):
            writer.write_tensor_data(array)

    # Write the Modelfile.
    reading = turns.read(source.tokenizer, vocabulary.adds_bos)
    texts = [vocabulary.tokens[end] for end in vocabulary.ends]
    notes = [*vocabulary.notes, *reading.notes]
    written = modelfile.render(path.name, reading, stated, texts, notes)
    (folder / "Modelfile").write_text(written, encoding="utf-8")
    return notes


def _header(
    path: Path, described: Architecture, vocabulary: Vocabulary, quantization: Quantization
) -> Any:
    """Return a writer that has all settings of the file, but no tensors yet.

    It sets no general.name, because llama.cpp reads special tokens differently for some names
    (phi-3).
    """
    from gguf import GGUFWriter  # an optional extra

    # The architecture.
    writer = GGUFWriter(path, described.kind)
    writer.add_type("model")
    writer.add_file_type(_FILE_TYPES[quantization])
    writer.add_quantization_version(2)
    writer.add_vocab_size(described.vocabulary)
    writer.add_block_count(described.layers)
    writer.add_context_length(described.context_length)
    writer.add_embedding_length(described.hidden)
    writer.add_feed_forward_length(described.feed_forward)
    writer.add_head_count(described.heads)
    writer.add_head_count_kv(described.kv_heads)
    writer.add_key_length(described.head_size)
    writer.add_value_length(described.head_size)
    writer.add_rope_dimension_count(described.head_size)
    writer.add_rope_freq_base(described.rope_base)
    writer.add_layer_norm_rms_eps(described.norm_epsilon)

    # The tokenizer.
    writer.add_tokenizer_model("gpt2")  # this is GGUF's name for byte-level BPE
    writer.add_tokenizer_pre(vocabulary.pre_tokenizer)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types([int(kind) for kind in vocabulary.kinds])
    writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(vocabulary.bos)
    adders = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
    for add, end in zip(adders, vocabulary.ends, strict=False):  # there may be fewer than three
        add(end)
    if vocabulary.padding is not None:
        writer.add_pad_token_id(vocabulary.padding)
    writer.add_add_bos_token(vocabulary.adds_bos)
    writer.add_add_eos_token(vocabulary.adds_eos)
    if vocabulary.chat_template is not None:
        writer.add_chat_template(vocabulary.chat_template)
    return writer


def _add_sampling(writer: Any, stated: Mapping[str, float | int]) -> None:
    """Add the sampling defaults that llama.cpp reads from a file."""
    adders = {
        "temperature": writer.add_sampling_temp,
        "top_k": writer.add_sampling_top_k,
        "top_p": writer.add_sampling_top_p,
        "min_p": writer.add_sampling_min_p,
        "repeat_penalty": writer.add_sampling_penalty_repeat,
    }
    for name, add in adders.items():
        if name in stated:
            add(stated[name])


def _add_plan(writer: Any, planned: tensors.Planned) -> None:
    import numpy as np  # beside gguf
    from gguf import GGMLQuantizationType  # an optional extra

    kind = GGMLQuantizationType[planned.stored.upper()]
    number = {"f32": np.float32, "f16": np.float16, "q8_0": np.uint8}[planned.stored]
    writer.add_tensor_info(
        planned.name, planned.byte_shape, np.dtype(number), planned.bytes, raw_dtype=kind
    )
