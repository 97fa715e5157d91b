"""Refuses a search that can't succeed, before it starts.

It checks for too few GPUs, too little disk, missing packages, and a Hub that would refuse the push.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from dpo_train import extras, model_source
from dpo_train.config import ModelConfig
from dpo_train.errors import InputError
from dpo_train.storage.disk import free_bytes
from tune.config.checks import refuse_uneven_batches
from tune.config.schema import SearchConfig
from tune.run_folder.paths import RunFolder
from tune.search import deploy, gpus
from tune.search.user_code import refuse_untrusted


def refuse_impossible(config: SearchConfig) -> None:
    """Raise InputError if this machine lacks GPUs, disk space or a package that the search needs.

    A cluster's GPUs can't be counted from here, and Ray waits for them. Disk space is checked only
    if the model is on this machine.
    """
    # --- GPUs ---
    if config.resources.gpus and not os.environ.get("RAY_ADDRESS"):
        gpus.refuse_unfit(config.resources.gpus)
    refuse_uneven_batches(config)

    # --- packages, and the user's own code ---
    if config.sampler.name == "cmaes":
        extras.refuse_missing("sampler.name: cmaes", "cmaes", "samplers")
    if not os.environ.get("RAY_ADDRESS"):
        extras.refuse_attention(config.model.attention, config.device)
        quantized = [f"optim.name: {name}" for name in config.optimizers - {"adamw"}]
        if config.model.quantization is not None:
            quantized.append(f"model.quantization: {config.model.quantization}")
        for setting in quantized:
            extras.refuse_missing(setting, "bitsandbytes", "quantized")
    refuse_untrusted(config)

    # --- disk space ---
    if config.trainer != "simulated" and model_source.local_folder(config.model) is not None:
        model_source.resolve(config.model)
        need, free = disk_bytes(config), free_bytes(config.folder.parent)
        # A run at a URL keeps files here only until they are uploaded, so we don't check it.
        if need > free and RunFolder.at(config.folder).url is None:
            raise InputError(
                f"runs_dir: the search may write {need / 1e9:.1f} GB to {config.runs_dir}, where "
                f"{free / 1e9:.1f} GB are free; delete files, lower keep_best, or set another "
                "runs_dir"
            )


def refuse_impossible_end(config: SearchConfig) -> str:
    """Return a line about the repository to which the winner is pushed; empty if there is none.

    Raises InputError if the winner could not be pushed or served, so that this is known before the
    search and not after it.
    """
    if config.serve.after:
        deploy.check(config)
    if config.hub.when == "never":
        return ""
    from tune.publish import push  # imports the Hub client, slowly

    return push.check(config)


def trainable_share(config: SearchConfig, weights: int) -> int:
    """Return how many weights are trained: all of them, or an estimate for a LoRA."""
    if config.lora is None:
        return weights
    # A LoRA of rank r on a layer of d x d weights has 2 r d weights, and in small models d is
    # around 1,000.
    return int(weights * min(1.0, 2 * config.lora.r / 1000))


def disk_bytes(config: SearchConfig, reports: int = 3) -> int:
    """Return the most disk space that a search takes, in bytes.

    It is made of the best exports, the winner, for each running trial the exports of `reports`
    reports and two states, and on a CPU converted weights if the model has another dtype.
    """
    weights = model_source.parameter_count(config.model)
    exported = trainable_share(config, weights) * 4
    at_once = config.resources.at_once or os.cpu_count() or 1
    running = min(at_once, config.total_trials)
    converted = 4 * weights if config.device == "cpu" and _is_converted(config.model) else 0
    kept = (config.exports_kept + 2 + running * reports) * exported
    return kept + 2 * running * 3 * exported + converted


@dataclass(frozen=True)
class StatedShape:
    """The shape that a model's config.json states. The defaults are large, to be safe."""

    dtype: str = "float32"
    """Dtype of the saved weights."""
    width: int = 8192
    layers: int = 100
    words: int = 300_000
    """Words of the vocabulary."""


def stated_shape(config: ModelConfig) -> StatedShape:
    """Read the shape from the model's config.json, which is cached if the model was resolved."""
    folder = model_source.local_folder(config)
    if folder is None:
        from huggingface_hub import hf_hub_download  # slow to import

        path = Path(hf_hub_download(config.id, "config.json", revision=config.revision))
    else:
        path = folder / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    text, usual = content.get("text_config") or content, StatedShape()
    return StatedShape(
        dtype=content.get("dtype") or content.get("torch_dtype") or usual.dtype,
        width=int(text.get("hidden_size") or usual.width),
        layers=int(text.get("num_hidden_layers") or usual.layers),
        words=int(text.get("vocab_size") or usual.words),
    )


def _is_converted(config: ModelConfig) -> bool:
    """Return whether weights that are saved in another dtype must be converted to float32."""
    is_whole = config.quantization is None
    return is_whole and config.dtype == "float32" and stated_shape(config).dtype != "float32"
