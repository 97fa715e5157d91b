"""The base model and its tokenizer: find, identify, load once per process, hand out fresh.

Knows no training. Everything above the line imports no torch.
"""

from __future__ import annotations

import fcntl
import gc
import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo_train import sample
from dpo_train.config import LoraConfig, ModelConfig
from dpo_train.errors import InputError, one_line
from dpo_train.files import checksum

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_WANTED = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]


def resolve(config: ModelConfig) -> ModelConfig:
    """The config with its revision pinned to a commit. Raises InputError if there is no model."""
    folder = local_folder(config)
    if folder is not None:
        for name in ("config.json", "tokenizer_config.json"):
            if not (folder / name).is_file():
                raise InputError(
                    f"model.id: {folder} has no {name}; give a folder as save_pretrained writes "
                    "it (model and tokenizer), a Hub id, or `sample`"
                )
        return config
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(config.id, "config.json", revision=config.revision)
    except Exception as error:  # the library raises a dozen kinds; each is about what was named
        raise InputError(
            f"model.id: {config.id!r} can't be read from the Hub: {one_line(error, 300)}; give a "
            "Hub id you may read (`hf auth login`), a folder, or `sample`"
        ) from None
    return config.model_copy(update={"revision": Path(path).parent.name})


def local_folder(config: ModelConfig) -> Path | None:
    """The folder that the id names, or None for a Hub id."""
    if config.id == "sample":
        return sample.MODEL
    path = Path(config.id).expanduser()
    if path.is_dir() or config.id.startswith((".", "/", "~")):
        return path.absolute()
    return None


def fingerprint(config: ModelConfig) -> str:
    """Names the weights, tokenizer and chat template; of a resolved config.

    A commit on the Hub, or a digest of the files in a folder.
    """
    folder = local_folder(config)
    if folder is None:
        return f"{config.id}@{config.revision}"
    digest = hashlib.sha256()
    for path in sorted(path for pattern in _WANTED for path in folder.glob(pattern)):
        digest.update(path.name.encode())
        digest.update(bytes.fromhex(checksum(path)))
    return f"folder:{digest.hexdigest()}"


def fetch(config: ModelConfig) -> None:
    """Brings a Hub model into this machine's cache, once for all its processes.

    A resolved config that was fetched before asks the Hub nothing. Processes that load it for the
    first time at once would race in the cache: one fetches, the others wait.
    """
    if local_folder(config) is not None:
        return
    from huggingface_hub import constants, snapshot_download

    mark = Path(constants.HF_HUB_CACHE) / ".fetched" / f"{config.id}@{config.revision}"
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
    except OSError:  # a cache that may only be read was filled by another hand
        snapshot_download(config.id, revision=config.revision, allow_patterns=_WANTED)
        return
    with mark.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        if config.revision is not None and (fetched := file.read()) and Path(fetched).is_dir():
            return
        folder = snapshot_download(config.id, revision=config.revision, allow_patterns=_WANTED)
        file.truncate(0)
        file.write(folder)


def parameter_count(config: ModelConfig) -> int:
    """Weights of the model, from the headers of its safetensors files. Raises InputError."""
    try:
        count = _parameter_count(config)
    except Exception as error:  # headers that are cut, or no answer from the Hub
        raise InputError(
            f"model.id: the safetensors of {config.id!r} can't be read ({one_line(error)}); is it "
            "whole?"
        ) from None
    if not count:
        raise InputError(f"model.id: {config.id!r} holds no safetensors; convert it first")
    return count


def _parameter_count(config: ModelConfig) -> int:
    folder = local_folder(config)
    if folder is None:
        from huggingface_hub import get_safetensors_metadata

        metadata = get_safetensors_metadata(config.id, revision=config.revision)
        return sum(metadata.parameter_count.values())
    total = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header: dict[str, Any] = json.loads(file.read(size))
        for name, tensor in header.items():
            if name != "__metadata__":
                elements = 1
                for length in tensor["shape"]:
                    elements *= length
                total += elements
    return total


# --- from here on torch is imported ----------------------------------------------------------


@dataclass
class WarmBase:
    """A base model that stays on the device from trial to trial."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    pristine: dict[str, Any] | None
    """CPU copies of the weights, made when the first full fine-tuning is about to change them."""
    undo: Callable[[], None] | None = None
    """What takes back that a borrower changed in the model beside its weights."""

    def fresh(self, trained_in_full: bool) -> PreTrainedModel:
        """The model with the base's own weights, as if just loaded."""
        import torch

        if self.undo is not None:
            self.undo()
            self.undo = None
        # TRL and accelerate wrap `forward` on the instance, once more for every trainer.
        for wrapper in ("forward", "_original_forward"):
            self.model.__dict__.pop(wrapper, None)
        self.model.requires_grad_(True)
        self.model.train()
        with torch.no_grad():
            if self.pristine is not None:
                for name, weight in self.model.named_parameters():
                    weight.copy_(self.pristine[name])
            elif trained_in_full:
                self.pristine = {
                    name: weight.detach().to("cpu", copy=True)
                    for name, weight in self.model.named_parameters()
                }
        return self.model


_loaded: dict[tuple[str, str], WarmBase] = {}


def load_base(config: ModelConfig, device: str) -> WarmBase:
    """The process's one copy of the base on that device, loaded at the first call."""
    key = (config.model_dump_json(), device)
    if key not in _loaded:
        fetch(config)  # this node may be another than the one that prepared the data
        import torch
        from transformers import AutoModelForCausalLM

        folder = local_folder(config)
        place = {"revision": config.revision, "local_files_only": True} if folder is None else {}
        tokenizer = load_tokenizer(config)
        model = AutoModelForCausalLM.from_pretrained(
            folder or config.id, dtype=getattr(torch, config.dtype), **place
        ).to(device)
        _loaded.clear()  # one base at a time: a second would double the memory
        _loaded[key] = WarmBase(model, tokenizer, None)
        # What is loaded by now stays: the collection at each trial's end need not walk it again,
        # which would take it a quarter of a second in place of a millisecond.
        gc.collect()
        gc.freeze()
    return _loaded[key]


def forget_base() -> None:
    """The next trial loads the base anew, into the memory of this one if no session holds it."""
    _loaded.clear()
    # TRL's `forward` on the instance is a cycle, and what is frozen is never collected.
    gc.unfreeze()
    gc.collect()


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a fetched model, which must have a chat template, or InputError."""
    from transformers import AutoTokenizer

    folder = local_folder(config)
    place = {"revision": config.revision, "local_files_only": True} if folder is None else {}
    tokenizer = AutoTokenizer.from_pretrained(folder or config.id, **place)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template is None:
        raise InputError(
            f"model.id: the tokenizer of {config.id!r} has no chat template; use an instruct "
            "model, or save one into its tokenizer"
        )
    return tokenizer


def peft_config(lora: LoraConfig | None) -> Any:
    """PEFT's form of the adapter's config, or None."""
    if lora is None:
        return None
    import peft

    return peft.LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, target_modules=lora.target_modules, task_type="CAUSAL_LM"
    )
