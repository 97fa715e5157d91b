"""Weights → a folder that serves: weights (safetensors), tokenizer with template, manifest."""

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
    """Writes the folder whole or not at all: an older one stays until the new one is complete.

    `weights` are given where the model itself holds a part of them.
    """

    def save(part: Path) -> None:
        if config.lora is None:
            with model_settings.as_loaded(model):
                model.save_pretrained(part, state_dict=weights)
            return
        base = from_anywhere(config.model)
        for adapter in model.peft_config.values():
            adapter.base_model_name_or_path = base.id
            adapter.revision = base.revision
        # Otherwise PEFT asks the Hub whether the vocabulary grew.
        model.save_pretrained(part, save_embedding_layers=False, state_dict=weights)

    write_around(save, tokenizer, config, folder)


def write_around(
    save_weights: Callable[[Path], None],
    tokenizer: PreTrainedTokenizerBase,
    config: TrainConfig,
    folder: Path,
) -> None:
    """The same for weights that `save_weights` writes into a folder."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_weights(part)
    (part / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    save_tokenizer(tokenizer, part)
    portable = config.model_copy(update={"model": from_anywhere(config.model)})
    manifest = {
        "format": 1,
        "kind": "full" if config.lora is None else "adapter",
        "config": portable.model_dump(mode="json"),
    }
    (part / MANIFEST).write_text(json.dumps(manifest, indent=1))
    follow_umask(part)
    shutil.rmtree(folder, ignore_errors=True)
    part.replace(folder)


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Saves a tokenizer as it came, without what this process did with it."""
    for name in ("is_local", "local_files_only"):  # from where it was loaded
        tokenizer.init_kwargs.pop(name, None)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:  # those of a last call would become part of every later one
        backend.no_padding()
        backend.no_truncation()
    tokenizer.save_pretrained(folder)


def convert(exported: Path, folder: Path, merged: bool, dtype: str) -> None:
    """Writes an exported folder anew for people who do not have this project: no manifest, weights
    in `dtype`, with `merged` an adapter's added to its base's.

    An adapter that is not merged stays as it was trained.
    """
    from transformers import AutoTokenizer  # slow to import
    from transformers.utils import logging  # slow to import

    config = TrainConfig.model_validate(json.loads((exported / MANIFEST).read_text())["config"])
    if config.lora is not None and not merged:
        for path in exported.glob("adapter_*"):
            shutil.copy(path, folder)
    else:
        import torch  # slow to import

        logging.disable_progress_bar()  # it is read and written in a blink; the upload has one
        if config.lora is not None:
            policy = merged_model(exported)
        else:
            policy, _ = load(exported, "cpu", as_published=True)
        with model_settings.as_loaded(policy):
            policy.to(getattr(torch, dtype)).save_pretrained(folder)
    save_tokenizer(AutoTokenizer.from_pretrained(exported, trust_remote_code=False), folder)
    follow_umask(folder)


def merged_model(exported: Path) -> Any:
    """The base, unquantised, with an exported adapter's weights added to its own, in float32."""
    policy, _ = load(exported, "cpu", as_published=True)
    policy = _merged(policy.float())
    forget_base()
    return policy


def _merged(policy: Any) -> Any:
    """The base with an adapter's weights added to its own.

    Where the input embedding and the output layer share their weights and an adapter is on one of
    them, only that one changes: so they get weights of their own.
    """
    import torch  # slow to import

    base = policy.get_base_model()
    embedding, output = base.get_input_embeddings(), base.get_output_embeddings()
    adapted = [module for module in (embedding, output) if hasattr(module, "base_layer")]
    inner = [getattr(module, "base_layer", module) for module in (embedding, output)]
    if adapted and inner[0].weight is inner[1].weight:
        inner[1].weight = torch.nn.Parameter(inner[1].weight.detach().clone())
        base.config.tie_word_embeddings = False
        base.config.get_text_config().tie_word_embeddings = False
    return policy.merge_and_unload()


def load(
    folder: Path, device: str, as_published: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The exported model, an adapter on its base. Ready to generate.

    Quantisation and attention are those of the training; or, if asked, `as_published`: as others
    load it.
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

        warm = load_base(base, device)
        model: Any = PeftModel.from_pretrained(warm.fresh(trained_in_full=False), folder)
    else:
        dtype = getattr(torch, config.model.dtype)
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation=base.attention, trust_remote_code=False
        ).to(device)
    return model.eval(), tokenizer
