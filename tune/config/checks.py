"""Checks across the sections of a search's configuration. They run before the search starts."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from dpo_train.config import TrainConfig
from dpo_train.config_base import override
from dpo_train.config_fields import few
from dpo_train.errors import InputError
from dpo_train.storage import mirror, object_store
from tune.config.schema import SearchConfig
from tune.config.searchable import check_space
from tune.config.space import check_point

_STORAGE_OPTIONS = (
    "application_name", "charset", "connect_timeout", "host", "mode", "port", "sslcert", "sslmode",
    "sslrootcert", "ssl_ca", "target_session_attrs", "timeout", "unix_socket", "uri",
)  # fmt: skip
"""The options of a database URL that we allow. Any other option may be a secret."""


def check(config: SearchConfig) -> SearchConfig:
    """Check the rules that concern more than one section. Raises InputError; returns the config."""
    check_space(config.space, config.base_trial())

    # --- what a trial runs on ---
    if config.resources.members > 1 and config.trainer == "packed":
        raise InputError(
            f"resources.gpus: a trial gets {config.resources.gpus:g}, but packed trials share one "
            "GPU; type `--set resources.gpus=0.125`, or `trainer: trl`"
        )
    if config.resources.sharded and config.model.quantization is not None:
        raise InputError(
            f"resources.sharded: weights in {config.model.quantization} can't be split among "
            "GPUs; type `--set resources.sharded=false`, or take model.quantization out"
        )
    _check_optimizers(config)

    # --- points and their number ---
    for point in config.given_points:
        check_point(point, config.space)
        override(config.base_trial(), point)
    if config.sampler.name == "grid":
        _check_grid(config)
    elif config.trials is None:
        raise InputError("trials: say how many, like `trials: 24`; only a grid needs no number")

    # --- metrics that can't be compared ---
    searched = [path for path in config.space if path.startswith(("dpo.", "trl."))]
    for field, metric in (
        *(("objective", each.metric) for each in config.goal.parts),
        ("stopping.metric", config.stopping.metric),
    ):
        if metric == "eval/loss" and searched:
            raise InputError(
                f"{field}: eval/loss can't be compared between trials with different "
                f"{', '.join(searched)}; use eval/accuracy, eval/ranking or eval/nll"
            )
    if config.hub.when == "improved" and config.goal.metric == "eval/loss":
        raise InputError(
            "hub.when: improved can't compare eval/loss between models; type `when: always`, or "
            "take another objective"
        )

    # --- where files go ---
    object_store.refuse_unusable("runs_dir", config.runs_dir)
    if config.tensorboard and mirror.is_url(config.runs_dir):
        raise InputError(
            f"tensorboard: its files can only be written under a local runs_dir, not to "
            f"{config.runs_dir}; type `--set tensorboard=false`, or give a path as runs_dir"
        )
    check_storage(config.storage)

    # --- what goes with what ---
    _check_two_objectives(config)
    _check_confirm(config)
    _check_rungs(config)
    _warn_of_annealing(config)
    return config


def refuse_uneven_batches(config: SearchConfig) -> None:
    """Raise InputError if the GPUs of a trial can't split a batch evenly.

    It is called after the check that the GPUs exist: that error is the more serious one.
    """
    if config.resources.members == 1:
        return
    sizes = _corners(config, "optim.batch_size") or [config.optim.batch_size]
    if "optim.batch_size" in config.space and config.space["optim.batch_size"].is_whole:
        sizes = list(range(sizes[0], sizes[1] + 1))
    for point in [*({"optim.batch_size": size} for size in sizes), *config.given_points]:
        config.trial(point)  # raises InputError if the batch can't be split


def refuse_without_axes(config: SearchConfig, yaml: str) -> None:
    """Raise InputError for a new search without a space. `yaml` is its file's name."""
    if config.space:
        return
    # The fields of a search that a single training does not know.
    search_only = config.model_fields_set - set(TrainConfig.model_fields) - {"space"}
    if config.name == Path(yaml).stem:
        search_only -= {"name"}  # it is not in the file
    first = f"take {few(sorted(search_only))} out and " if search_only else ""
    raise InputError(
        "space: there is nothing to search; type `space: {optim.learning_rate: {log_uniform: "
        f"[1e-6, 1e-4]}}}}`. To train a single model: {first}type "
        f"`python -m dpo_train {yaml} --out my-model`"
    )


def _check_optimizers(config: SearchConfig) -> None:
    for name in config.optimizers - {"adamw"}:
        if name.startswith("paged") and not config.resources.gpus:
            raise InputError(
                f"optim.name: {name} works only on a GPU; take {name.removeprefix('paged_')}"
            )
        if config.resources.sharded:
            raise InputError(
                f"optim.name: {name} can't be split among GPUs; type "
                "`--set resources.sharded=false`, or `name: adamw`"
            )


def _check_grid(config: SearchConfig) -> None:
    if not config.space:
        raise InputError(
            "sampler: a grid needs a space; add one, like `space: {dpo.beta: {choice: [0.1, 0.5]}}`"
        )
    points = len(config.first_points)
    # Points of an earlier search are not read yet; this check is repeated once they are.
    if config.total_trials > points and isinstance(config.points, list):
        raise InputError(
            f"trials: {config.trials} is more than the {points} points of the grid; leave trials "
            "out, or take another sampler"
        )


def _check_two_objectives(config: SearchConfig) -> None:
    first, second, stopping = config.goal.metric, config.goal.second, config.stopping
    if second is None:
        return
    if first == "eval/drift":
        raise InputError(
            "objective: with eval/drift first, every trial would count with its first report, "
            f"where it has learnt least; type `objective: [{second.metric}, eval/drift]`"
        )
    if config.sampler.name == "cmaes":
        raise InputError(
            "sampler: cmaes can't search for two objectives; type `sampler: {name: tpe}`, or take "
            "gp, random or grid"
        )
    if stopping.name == "median":
        raise InputError(
            "stopping: the median rule can't compare two objectives; type "
            "`stopping: {name: asha}`, or take none"
        )
    if stopping.name == "asha" and stopping.metric == second.metric:
        raise InputError(
            f"stopping.metric: the rungs compare it and the second objective, and both are "
            f"{stopping.metric}; type `--set stopping.metric={first}`"
        )


def _check_confirm(config: SearchConfig) -> None:
    if config.confirm is None:
        return
    if "seed" in config.space:
        raise InputError(
            "confirm: the finalists are trained again with other seeds, so seed can't be an axis; "
            "take it out of the space"
        )


def _check_rungs(config: SearchConfig) -> None:
    grace, every = config.stopping.grace_pairs, config.eval_every_pairs
    if every is None:
        # Trials are then evaluated at the rungs. This checks that no batch steps over a rung.
        config.base_trial()
    elif config.stopping.name != "none" and grace % every:
        below, above = max(1, grace // every) * every, math.ceil(grace / every) * every
        nearest = " or ".join(str(value) for value in sorted({below, above}))
        raise InputError(
            f"stopping.grace_pairs: {grace} is not a multiple of eval_every_pairs ({every}), so no "
            f"trial would be evaluated at the rungs; the nearest that fit: {nearest}"
        )


def _warn_of_annealing(config: SearchConfig) -> None:
    schedules = {config.optim.schedule} | set(_corners(config, "optim.schedule"))
    annealed = schedules & {"linear", "cosine"}
    if annealed and "optim.epochs" in config.space and config.stopping.name == "asha":
        warnings.warn(
            f"optim.schedule is {' and '.join(sorted(annealed))} and optim.epochs is searched, so "
            "ASHA compares trials at different points of their learning rate schedule; with "
            "constant_with_warmup the comparison is fair",
            UserWarning,
            stacklevel=2,
        )


def _corners(config: SearchConfig, path: str) -> list[Any]:
    return config.space[path].corners if path in config.space else []


def check_storage(storage: str | None) -> None:
    """Raise InputError for a `storage` that is wrong in itself. It is not opened."""
    try:
        url = urlsplit(storage or "")
        password, options = url.password, set(parse_qs(url.query, keep_blank_values=True))
    except ValueError:
        raise InputError(
            "storage: it looks like a URL but is not a valid one; type one like "
            "`sqlite:///runs/studies.db`"
        ) from None
    if password is not None or (url.scheme and options - set(_STORAGE_OPTIONS)):
        raise InputError(
            "storage: the URL has a password or an unknown option, and would be saved with the "
            f"search; allowed options are {', '.join(_STORAGE_OPTIONS)}; give a password by "
            "PostgreSQL's own PGPASSWORD or ~/.pgpass"
        )
