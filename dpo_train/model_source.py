"""Where a base model comes from: a folder, the Hub or the sample. Finds it, pins it, fetches it and
reads its size from the headers of its files.

Imports no torch, so that a driver can ask in milliseconds.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
from pathlib import Path

from safetensors import safe_open

from dpo_train import sample
from dpo_train.config import ModelConfig
from dpo_train.errors import InputError, one_line
from dpo_train.storage.files import checksum

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
    from huggingface_hub import hf_hub_download  # slow to import

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
    from huggingface_hub import constants, snapshot_download  # slow to import

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
        from huggingface_hub import get_safetensors_metadata  # slow to import

        metadata = get_safetensors_metadata(config.id, revision=config.revision)
        return sum(metadata.parameter_count.values())
    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="np") as file:
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.offset_keys())
    return total
