"""Finds a base model in a folder, on the Hub or in the sample. Pins its commit, downloads it, and
reads its size from the headers of its files.

This module imports no torch, so that a driver gets its answers in milliseconds.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
from pathlib import Path
from typing import Any

from safetensors import safe_open

from dpo_train import hub_errors, sample
from dpo_train.command_line import dpo_tune
from dpo_train.config import ModelConfig
from dpo_train.errors import InputError, one_line
from dpo_train.hub_offline import look_for_hub
from dpo_train.storage.files import checksum

_ADAPTER = "adapter_config.json"
_WANTED = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]


def resolve(config: ModelConfig) -> ModelConfig:
    """Return the config with its revision pinned to a commit. Raises InputError for no model."""
    folder = local_folder(config)
    if folder is not None:
        refuse_folder(folder)
        return config
    look_for_hub()
    try:
        path = _on_hub(config, "config.json")
        adapter = _on_hub(config, _ADAPTER)
    except Exception as error:  # the library raises many kinds; each is about this model
        advice = f"give a Hub id you may read (`{hub_errors.HF_LOGIN}`), a folder, or `sample`"
        reason = hub_errors.explain(error, advice)
        raise InputError(f"model.id: {config.id!r} can't be read from the Hub: {reason}") from None
    _refuse_adapter(config.id, path is not None, adapter is not None)
    if path is None:
        raise InputError(
            f"model.id: no config.json of {config.id!r} was found on the Hub or in the cache; give "
            "a Hub id of a model, a folder, or `sample`"
        )
    return config.model_copy(update={"revision": path.parent.name})


def refuse_folder(folder: Path) -> None:
    """Raise InputError unless a folder holds a model with its tokenizer, and no adapter."""
    has_model = (folder / "config.json").is_file()
    _refuse_adapter(str(folder), has_model, (folder / _ADAPTER).is_file())
    for name in ("config.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            raise InputError(
                f"model.id: {folder} has no {name}; give a folder as save_pretrained writes "
                "it (model and tokenizer), a Hub id, or `sample`"
            )
        try:
            is_object = isinstance(json.loads((folder / name).read_bytes()), dict)
        except (OSError, ValueError):
            is_object = False
        if not is_object:
            raise InputError(
                f"model.id: {folder / name} is not a JSON object; copy the folder again, or give a "
                "Hub id, or `sample`"
            )


def architecture(config: ModelConfig) -> Any:
    """Return transformers' configuration of a resolved model.

    Raises InputError if it can't be read, and for a model that needs its own Python code, which is
    never run.
    """
    from transformers import AutoConfig  # slow to import

    folder = local_folder(config)
    hub_options = {"revision": config.revision} if folder is None else {}
    try:
        return AutoConfig.from_pretrained(
            folder or config.id, trust_remote_code=False, **hub_options
        )
    except Exception as error:  # the libraries raise many kinds; each is about this model
        raise unloadable(config, "the configuration", error) from None


def unloadable(config: ModelConfig, part: str, error: Exception) -> InputError:
    """Return the InputError for an error that transformers raised loading a part of a model."""
    if "trust_remote_code" in str(error):
        return InputError(
            f"model.id: {config.id!r} needs Python code that comes with it, and such code is never "
            "run; give a model whose architecture transformers has"
        )
    return InputError(f"model.id: {part} of {config.id!r} can't be loaded ({one_line(error, 300)})")


def _on_hub(config: ModelConfig, name: str) -> Path | None:
    """Download a file of a model on the Hub; return None if the model has no such file."""
    from huggingface_hub import hf_hub_download  # slow to import
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(config.id, name, revision=config.revision))
    except LocalEntryNotFoundError:
        if name == _ADAPTER:  # the Hub can't be reached, and the cache has no adapter
            return None
        raise
    except EntryNotFoundError:
        return None


def _refuse_adapter(source: str, has_model: bool, has_adapter: bool) -> None:
    """Raise InputError for an adapter, which transformers would load silently."""
    if not has_adapter:
        return
    if has_model:
        raise InputError(
            f"model.id: {source} holds a whole model and an adapter ({_ADAPTER}), and transformers "
            "would load both; put them into two folders, and give the model's folder"
        )
    command = dpo_tune("push", "RUN", "--merged", "--to", "FOLDER")
    raise InputError(
        f"model.id: {source} is an adapter ({_ADAPTER}), not a model; merge it into its base "
        f"(`{command}`, or PEFT's `merge_and_unload`), and give that"
    )


def local_folder(config: ModelConfig) -> Path | None:
    """Return the folder that the id names, or None for a Hub id."""
    if config.id == "sample":
        return sample.MODEL
    path = Path(config.id).expanduser()
    if path.is_dir() or config.id.startswith((".", "/", "~")):
        return path.absolute()
    return None


def from_anywhere(base: ModelConfig) -> ModelConfig:
    """Return the base with an id that does not depend on the working directory."""
    folder = local_folder(base)
    if folder is None or base.id == "sample":
        return base
    return base.model_copy(update={"id": str(folder)})


def fingerprint(config: ModelConfig) -> str:
    """Return a text that identifies the weights, tokenizer and chat template of a resolved config.

    It holds the commit on the Hub, or a digest of the files in the folder.
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
    """Download a Hub model into this machine's cache, once for all its processes.

    A resolved config that was downloaded before sends no request to the Hub. Processes that
    download a model at the same time would race in the cache, so one does, and the others wait.
    """
    if local_folder(config) is not None:
        return
    from huggingface_hub import constants, snapshot_download  # slow to import

    mark = Path(constants.HF_HUB_CACHE) / ".fetched" / f"{config.id}@{config.revision}"
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
    except OSError:  # the cache is read-only, so somebody else has filled it
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
    """Return the model's number of weights, from the headers of its safetensors files.

    Raises InputError if they can't be read, or if there are none.
    """
    try:
        count = _parameter_count(config)
    except Exception as error:  # damaged headers, or no answer from the Hub
        what = f"model.id: the safetensors of {config.id!r} can't be read"
        if local_folder(config) is None:
            raise InputError(f"{what}: {hub_errors.explain(error)}") from None
        raise InputError(f"{what} ({one_line(error)}); copy the folder again") from None
    if not count:
        raise InputError(
            f"model.id: {config.id!r} has no safetensors files; convert its weights to safetensors"
        )
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
