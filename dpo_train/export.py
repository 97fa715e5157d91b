"""Writes a model as a folder that can be served: safetensors, tokenizer with template, manifest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo_train import model_settings
from dpo_train.config import TrainConfig
from dpo_train.model import forget_base, load_base
from dpo_train.model_source import from_anywhere
from dpo_train.storage.files import follow_umask

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MANIFEST = "manifest.json"


def write(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    config: TrainConfig,
    folder: Path,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write the whole folder or nothing: an older folder stays until the new one is complete.

    `weights` are given if the model itself holds only a part of them (FSDP2).
    """

    def save(partial: Path) -> None:
        if config.lora is None:
            with model_settings.as_loaded(model):
                model.save_pretrained(partial, state_dict=weights)
            return
        base = from_anywhere(config.model)
        for adapter in model.peft_config.values():
            adapter.base_model_name_or_path = base.id
            adapter.revision = base.revision
        # PEFT would ask the Hub whether the vocabulary grew, without `save_embedding_layers=False`.
        model.save_pretrained(partial, save_embedding_layers=False, state_dict=weights)

    write_around(save, tokenizer, config, folder)


def write_around(
    save_weights: Callable[[Path], None],
    tokenizer: PreTrainedTokenizerBase,
    config: TrainConfig,
    folder: Path,
) -> None:
    """Write the folder as `write` does, but let `save_weights` write the weights into it."""
    partial = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_weights(partial)
    (partial / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    save_tokenizer(tokenizer, partial)
    portable = config.model_copy(update={"model": from_anywhere(config.model)})
    manifest = {
        "format": 1,
        "kind": "full" if config.lora is None else "adapter",
        "config": portable.model_dump(mode="json"),
    }
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
    follow_umask(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Save a tokenizer as it was loaded, without settings that this process changed."""
    for name in ("is_local", "local_files_only"):  # they depend on where it was loaded from
        tokenizer.init_kwargs.pop(name, None)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    # The padding and truncation of the last call would be saved, and apply to later calls.
    if backend is not None:
        backend.no_padding()
        backend.no_truncation()
    tokenizer.save_pretrained(folder)


def convert(exported: Path, folder: Path, merged: bool, dtype: str) -> None:
    """Write an exported folder again for people who do not have this project.

    It has no manifest, and its weights are in `dtype`. With `merged` an adapter is added to its
    base; otherwise an adapter stays as it was trained.
    """
    from transformers import AutoTokenizer  # slow to import
    from transformers.utils import logging  # slow to import

    config = TrainConfig.model_validate(json.loads((exported / MANIFEST).read_text())["config"])
    if config.lora is not None and not merged:
        for path in exported.glob("adapter_*"):
            shutil.copy(path, folder)
    else:
        import torch  # slow to import

        logging.disable_progress_bar()  # this is fast; the upload has its own progress bar
        if config.lora is not None:
            model: Any = merged_model(exported)
        else:
            model, _ = load(exported, "cpu", as_published=True)
        with model_settings.as_loaded(model):
            model.to(getattr(torch, dtype)).save_pretrained(folder)
    save_tokenizer(AutoTokenizer.from_pretrained(exported, trust_remote_code=False), folder)
    follow_umask(folder)


def merged_model(exported: Path) -> Any:
    """Return the unquantised base in float32, with an exported adapter added to its weights."""
    model, _ = load(exported, "cpu", as_published=True)
    merged = _merged(model.float())
    forget_base()
    return merged


def _merged(model: Any) -> Any:
    """Return the base of a PEFT model with the adapter added to its weights.

    Problem: if the input embedding and the output layer share weights and only one of them has an
    adapter, only that one may change. So we give each its own copy of the weights.
    """
    import torch  # slow to import

    base = model.get_base_model()
    embedding, output = base.get_input_embeddings(), base.get_output_embeddings()
    adapted = [module for module in (embedding, output) if hasattr(module, "base_layer")]
    inner = [getattr(module, "base_layer", module) for module in (embedding, output)]
    if adapted and inner[0].weight is inner[1].weight:
        inner[1].weight = torch.nn.Parameter(inner[1].weight.detach().clone())
        base.config.tie_word_embeddings = False
        base.config.get_text_config().tie_word_embeddings = False
    return model.merge_and_unload()


def load(
    folder: Path, device: str, as_published: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load an exported model, or an exported adapter on its base, ready to generate.

    Quantisation and attention are those of the training. With `as_published` the base is loaded
    without quantisation and with the default attention, as other people load it.
    """
    import torch  # slow to import
    from transformers import AutoModelForCausalLM, AutoTokenizer  # slow to import

    manifest = json.loads((folder / MANIFEST).read_text())
    config = TrainConfig.model_validate(manifest["config"])
    published = {"quantization": None, "attention": None} if as_published else {}
    base = config.model.model_copy(update=published)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if manifest["kind"] == "adapter":
        from peft import PeftModel  # slow to import

        loaded = load_base(base, device).fresh(trained_in_full=False)
        model: Any = PeftModel.from_pretrained(loaded, folder)
    else:
        dtype = getattr(torch, config.model.dtype)
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation=base.attention, trust_remote_code=False
        ).to(device)
    return model.eval(), tokenizer
