"""Converts a base model's weights to float32, once for all processes of a machine.

transformers maps a file of weights that has the requested dtype, and all processes share its pages.
If a file has another dtype, each process makes its own copy, so we convert the file once. This
module knows no training.
"""

from __future__ import annotations

import fcntl
import json
import math
import shutil
from pathlib import Path

from safetensors import SafetensorError, safe_open

from dpo_train.config import ModelConfig
from dpo_train.model_source import local_folder
from dpo_train.storage import disk
from dpo_train.storage.files import follow_umask

FOLDER = "weights"
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_CONFIGS = ("config.json", "generation_config.json", _INDEX)
_PLAIN = {"F32", "BF16", "F16"}
"""The dtypes, as safetensors writes them, that float32 holds without rounding."""


def converted(config: ModelConfig, prepared: Path) -> Path | None:
    """Return the folder below `prepared` with a fetched model's weights in float32.

    Writes the folder if it is missing. Returns None if the model is better loaded from its own
    files: they have the requested dtype; bfloat16 is requested (an architecture may keep some
    modules in float32, so converting down could change numbers); the model is or will be quantised;
    or the disk has no space for a copy. Raises DiskFull.
    """
    if config.dtype != "float32" or config.quantization is not None:
        return None
    source = local_folder(config) or _hub_folder(config)
    try:
        files = _weight_files(source)
        dtypes, parameters = _headers(files)
    except (OSError, ValueError, SafetensorError):  # loading the model will report the error
        return None
    if dtypes == {"F32"} or not files or not dtypes <= _PLAIN:
        return None
    folder = prepared / FOLDER
    with (prepared / f"{FOLDER}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # it is held until the file is closed
        if not folder.is_dir():
            if disk.free_bytes(prepared) < 2 * 4 * parameters:
                return None
            _convert(source, files, folder)
    return folder


def _hub_folder(config: ModelConfig) -> Path:
    from huggingface_hub import hf_hub_download  # slow to import

    path = hf_hub_download(
        config.id, "config.json", revision=config.revision, local_files_only=True
    )
    return Path(path).parent


def _weight_files(folder: Path) -> list[Path]:
    """Return the files that transformers would load; none if it would load others."""
    if (folder / "adapter_config.json").is_file():  # transformers would load another base
        return []
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    if (folder / _INDEX).is_file():
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        return [folder / name for name in sorted(set(index["weight_map"].values()))]
    return []


def _headers(files: list[Path]) -> tuple[set[str], int]:
    """Return the dtypes in the headers of the files, and how many numbers the files hold."""
    dtypes: set[str] = set()
    count = 0
    for path in files:
        with safe_open(path, framework="np") as file:
            for name in file.offset_keys():
                tensor = file.get_slice(name)
                dtypes.add(tensor.get_dtype())
                count += math.prod(tensor.get_shape())
    return dtypes, count


def _convert(source: Path, files: list[Path], folder: Path) -> None:
    """Write the whole folder or nothing. Only one file at a time is in memory."""
    from safetensors.torch import load_file, save_file  # slow to import

    partial = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)  # a killed process may have left it
    partial.mkdir()
    with disk.discarding_partial(partial):
        for path in files:
            tensors = load_file(path)
            for name in list(tensors):
                tensors[name] = tensors[name].float()
            save_file(tensors, partial / path.name, metadata={"format": "pt"})
        for name in _CONFIGS:
            if (source / name).is_file():
                shutil.copyfile(source / name, partial / name)
        follow_umask(partial)
        partial.replace(folder)
