"""What is here and what a search needs, said before anything is spent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from dpo_train import model_source
from dpo_train.data import load_pairs
from dpo_train.reference_pass.tokens import check_rows
from dpo_train.storage.disk import free_bytes
from tune.config.schema import SearchConfig
from tune.run_folder.driver_lease import refresh
from tune.run_folder.paths import RunFolder
from tune.search import gpus, memory_plan
from tune.search.preflight import (
    disk_bytes,
    refuse_impossible,
    refuse_impossible_end,
)
from tune.tracking import trackers

_RUNG_PAIRS = 128
"""From which on a rung tells more than noise."""


def examine(config: SearchConfig | None) -> Iterator[str]:
    """The lines that `dpo-tune doctor` prints. Raises InputError after those that still hold."""
    yield from _machine()
    yield from _logins(config)
    if config is not None:
        yield from _needs(config)
        if pushed := refuse_impossible_end(config):
            yield f"push         {pushed}"
        refuse_impossible(config)
        yield "ready        yes"


def _machine() -> list[str]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    there = gpus.visible_gpus()
    cluster = os.environ.get("RAY_ADDRESS", "none set; Ray starts on this machine")
    return [
        f"CPUs         {len(os.sched_getaffinity(0))}",
        f"memory       {memory / 1e9:.1f} GB",
        f"GPUs         {len(there)}" + "".join(f"\n             {gpu}" for gpu in there),
        *([f"C compiler   {gpus.c_compiler() or 'none'}"] if there else []),
        f"cluster      {cluster}",
        f"free disk    {free_bytes(Path('.')) / 1e9:.1f} GB here",
    ]


def _logins(config: SearchConfig | None) -> list[str]:
    from huggingface_hub import constants, get_token  # slow to import

    hub = "logged in" if get_token() else "not logged in (`hf auth login`; public models need none)"
    offline = " (HF_HUB_OFFLINE is set: only what is cached)" if constants.HF_HUB_OFFLINE else ""
    states = trackers.logins(config)
    return [f"Hub          {hub}{offline}", *(f"{name:<13}{states[name]}" for name in states)]


def _needs(config: SearchConfig) -> Iterator[str]:
    again = config.total_runs - config.total_trials
    yield (
        f"search       {config.name}: {config.total_trials} trials"
        + (f" and {again} runs that confirm the best, " if again else ", ")
        + f"{config.resources.cpus:g} CPU and {config.resources.gpus:g} GPU each"
    )
    if config.trainer == "simulated":
        yield "             simulated: no model, no data"
        return
    resolved = config.model_copy(update={"model": model_source.resolve(config.model)})
    weights = model_source.parameter_count(resolved.model)
    yield f"model        {config.model.id}: reachable, {weights / 1e6:.1f} M weights"
    pairs = load_pairs(config.data)
    rows = [row for split in pairs.splits.values() for row in split]
    yield f"data         {config.data.id}: read as {pairs.read_as}; {pairs.summary()}"
    for note in check_rows(resolved.model, rows, config.data.on_bad_row):
        yield f"             {note}"
    yield from memory_plan.lines(resolved, rows)
    train = len(pairs.splits["train"]) * config.most_epochs
    yield from _first_rung(config)
    most = disk_bytes(resolved, _reports(config, train))
    folder = RunFolder.at(config.folder)
    refresh(folder)
    exists = "exists" if folder.exists else "new"
    free = ""
    if folder.url is None:
        free = f"; {free_bytes(folder.path) / 1e9:.1f} GB free"
    yield f"disk         at most about {most / 1e9:.2f} GB in {folder} ({exists}{free})"


def _reports(config: SearchConfig, train: int) -> int:
    """How many reports a trial of so many pairs has at most."""
    trial, reports, pairs = config.base_trial(), 1, 0
    while (pairs := trial.next_evaluation(pairs)) < train:
        reports += 1
    return reports


def _first_rung(config: SearchConfig) -> Iterator[str]:
    first = config.stopping.grace_pairs
    if config.stopping.name != "none" and first < _RUNG_PAIRS:
        yield (
            f"warning      the first rung, at {first} pairs, lies in the noise: where it was "
            "recorded (benchmarks/RESULTS.md) the order of trials at 64 pairs agreed with that of "
            "their end by a rank correlation of 0.2 to 0.3, whether 20 or 240 pairs were held out, "
            f"and from {_RUNG_PAIRS} pairs on by 0.3 to 0.6; type "
            f"`--set stopping.grace_pairs={_RUNG_PAIRS}`"
        )
