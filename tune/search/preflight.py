"""Refuses a search that can't come to its end, before anything is spent.

It looks for too few GPUs, too little disk, missing packages, and a Hub that would refuse the push.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess

from dpo_train import model_source
from dpo_train.errors import InputError
from dpo_train.storage import mirror
from dpo_train.storage.disk import free_bytes
from tune.config.schema import SearchConfig
from tune.search import deploy
from tune.workers.user_evaluation import refuse_missing

_BYTES = {"float32": 4, "bfloat16": 2}


def refuse_impossible(config: SearchConfig) -> None:
    """Raises InputError if this machine lacks GPUs, disk or a package that the search needs.

    A cluster's GPUs can't be counted from here, Ray waits for them; the disk is compared with a
    model that lies on it.
    """
    for package in {"cmaes": ["cmaes"], "gp": ["scipy"]}.get(config.sampler.name, []):
        if importlib.util.find_spec(package) is None:
            raise InputError(
                f"sampler.name: {config.sampler.name} needs {package}; type "
                "`pip install 'dpo-tune[samplers]'`"
            )
    if config.confirm is not None and config.confirm.evaluate is not None:
        refuse_missing(config.confirm.evaluate)
    if config.resources.gpus and not os.environ.get("RAY_ADDRESS"):
        there = len(gpu_names())
        if config.resources.gpus > there:
            raise InputError(
                f"resources.gpus: a trial wants {config.resources.gpus:g}, this machine has "
                f"{there}; type `--set resources.gpus=0` for the CPU, or set RAY_ADDRESS to a "
                "cluster that has some"
            )
    if config.trainer != "simulated" and model_source.local_folder(config.model) is not None:
        model_source.resolve(config.model)
        need, free = disk_bytes(config), free_bytes(config.folder.parent)
        # Of a URL there is but what is on its way, here or on another node.
        if need > free and not mirror.is_url(config.runs_dir):
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


def gpu_names() -> list[str]:
    """The GPUs that this process may use, without importing torch."""
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    names = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return names if visible is None else names[: len([d for d in visible.split(",") if d])]


def trainable_share(config: SearchConfig, weights: int) -> int:
    """Weights that the optimizer updates: all, or about those of a LoRA."""
    if config.lora is None:
        return weights
    # A LoRA of rank r on a d x d layer has 2 r d weights of d * d; layers of small models have
    # d around 1,000. An estimate, said as one.
    return int(weights * min(1.0, 2 * config.lora.r / 1000))


def memory_bytes(config: SearchConfig) -> int:
    """Weights, gradients and AdamW's two moments of one trial; activations come on top."""
    weights = model_source.parameter_count(config.model)
    return weights * _BYTES[config.model.dtype] + trainable_share(config, weights) * 12


def disk_bytes(config: SearchConfig) -> int:
    """The most that a search holds: k best exports, the winner, two states a running trial."""
    weights = model_source.parameter_count(config.model)
    exported = trainable_share(config, weights) * 4
    at_once = config.resources.at_once or os.cpu_count() or 1
    states = 2 * min(at_once, config.total_trials)
    return (config.exports_kept + 2) * exported + states * 3 * exported
