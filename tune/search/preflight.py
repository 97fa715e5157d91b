"""Refuses a search that can't come to its end, before anything is spent.

It looks for too few GPUs, too little disk, missing packages, and a Hub that would refuse the push.
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
    """Raises InputError if this machine lacks GPUs, disk or a package that the search needs.

    A cluster's GPUs can't be counted from here, Ray waits for them; the disk is compared with a
    model that lies on it.
    """
    if config.resources.gpus and not os.environ.get("RAY_ADDRESS"):
        gpus.refuse_unfit(config.resources.gpus)
    refuse_uneven_batches(config)
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
    if config.trainer != "simulated" and model_source.local_folder(config.model) is not None:
        model_source.resolve(config.model)
        need, free = disk_bytes(config), free_bytes(config.folder.parent)
        # A run at a URL has on this machine only what is on its way.
        if need > free and RunFolder.at(config.folder).url is None:
            raise InputError(
                f"runs_dir: the search may write {need / 1e9:.1f} GB to {config.runs_dir}, where "
                f"{free / 1e9:.1f} GB are free; free some, lower keep_best, or set another runs_dir"
            )


def refuse_impossible_end(config: SearchConfig) -> str:
    """One line about the repository that the winner goes to; empty if it goes to none.

    Raises InputError if it could not be pushed there, or not be served: better now than after the
    search.
    """
    if config.serve.after:
        deploy.check(config)
    if config.hub.when == "never":
        return ""
    from tune.publish import push  # imports the Hub client, slowly

    return push.check(config)


def trainable_share(config: SearchConfig, weights: int) -> int:
    """Weights that the optimizer updates: all, or about those of a LoRA."""
    if config.lora is None:
        return weights
    # A LoRA of rank r on a d x d layer has 2 r d weights of d * d; layers of small models have
    # d around 1,000. An estimate, said as one.
    return int(weights * min(1.0, 2 * config.lora.r / 1000))


def disk_bytes(config: SearchConfig, reports: int = 3) -> int:
    """The most that a search holds: k best exports, the winner, of each running trial its reports
    that may still win and two states, and on a CPU the weights once more if their dtype has to be
    converted."""
    weights = model_source.parameter_count(config.model)
    exported = trainable_share(config, weights) * 4
    at_once = config.resources.at_once or os.cpu_count() or 1
    running = min(at_once, config.total_trials)
    converted = 4 * weights if config.device == "cpu" and _is_converted(config.model) else 0
    kept = (config.exports_kept + 2 + running * reports) * exported
    return kept + 2 * running * 3 * exported + converted


@dataclass(frozen=True)
class StatedShape:
    """What a model's config.json says. What it leaves out is taken to be large."""

    dtype: str = "float32"
    """Of the saved weights."""
    width: int = 8192
    layers: int = 100
    words: int = 300_000
    """Of the vocabulary."""


def stated_shape(config: ModelConfig) -> StatedShape:
    """What the model's config.json says; of a resolved config it is on this machine."""
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
    """Whether float32 is wanted of weights that were saved in another dtype, and stay whole."""
    is_whole = config.quantization is None
    return is_whole and config.dtype == "float32" and stated_shape(config).dtype != "float32"
