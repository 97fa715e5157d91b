"""Weights → a folder that serves: weights (safetensors), tokenizer with template, manifest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo_train import dropout
from dpo_train.config import TrainConfig
from dpo_train.model import forget_base, load_base

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MANIFEST = "manifest.json"


def write(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    config: TrainConfig,
    folder: Path,
    weights: dict[str, Any] | None = None,
) -> None:
    """Writes the folder whole or not at all: an older one stays until the new one is complete.

    `weights` are given where the model itself holds a part of them.
    """

    def save(part: Path) -> None:
        if config.lora is None:
            with dropout.as_configured(model):
                model.save_pretrained(part, state_dict=weights)
            return
        for adapter in model.peft_config.values():
            adapter.base_model_name_or_path = config.model.id
            adapter.revision = config.model.revision
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
    tokenizer.save_pretrained(part)
    manifest = {
        "format": 1,
        "kind": "full" if config.lora is None else "adapter",
        "config": config.model_dump(mode="json"),
    }
    (part / MANIFEST).write_text(json.dumps(manifest, indent=1))
    shutil.rmtree(folder, ignore_errors=True)
    part.replace(folder)


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
        policy, _ = load(exported, "cpu")
        if config.lora is not None:
            policy = policy.float().merge_and_unload()
            forget_base()
        policy.to(getattr(torch, dtype)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(exported).save_pretrained(folder)


def load(folder: Path, device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The exported model, an adapter on its base. Ready to generate."""
    import torch  # slow to import
    from transformers import AutoModelForCausalLM, AutoTokenizer  # slow to import

    manifest = json.loads((folder / MANIFEST).read_text())
    config = TrainConfig.model_validate(manifest["config"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if manifest["kind"] == "adapter":
        from peft import PeftModel  # slow to import

        warm = load_base(config.model, device)
        model: Any = PeftModel.from_pretrained(warm.fresh(trained_in_full=False), folder)
    else:
        dtype = getattr(torch, config.model.dtype)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device)
    return model.eval(), tokenizer
