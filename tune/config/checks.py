"""What must hold between the parts of a search's configuration. All of it is found before work."""

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
"""Of the databases that SQLAlchemy opens. Others may be secrets."""


def check(config: SearchConfig) -> SearchConfig:
    """The checks that look across parts. Raises InputError; returns the config."""
    check_space(config.space, config.base_trial())
    if config.resources.members > 1 and config.trainer == "packed":
        raise InputError(
            f"resources.gpus: {config.resources.gpus:g} for one trial; packed trials share a "
            "GPU: type `--set resources.gpus=0.125`, or `trainer: trl`"
        )
    if config.resources.sharded and config.model.quantization is not None:
        raise InputError(
            f"resources.sharded: weights in {config.model.quantization} can't be shared out; type "
            "`--set resources.sharded=false`, or take model.quantization out"
        )
    _check_optimizers(config)
    for point in config.given_points:
        check_point(point, config.space)
        override(config.base_trial(), point)
    if config.sampler.name == "grid":
        _check_grid(config)
    if config.sampler.name != "grid" and config.trials is None:
        raise InputError("trials: say how many, like `trials: 24`; only a grid knows by itself")
    searched = [path for path in config.space if path.startswith(("dpo.", "trl."))]
    for field, metric in (
        *(("objective", part.metric) for part in config.goal.parts),
        ("stopping.metric", config.stopping.metric),
    ):
        if metric == "eval/loss" and searched:
            raise InputError(
                f"{field}: eval/loss can't be compared between trials that differ in "
                f"{', '.join(searched)}; use eval/accuracy, eval/ranking or eval/nll"
            )
    if config.hub.when == "improved" and config.goal.metric == "eval/loss":
        raise InputError(
            "hub.when: improved can't compare eval/loss between models; use always, or another "
            "objective"
        )
    object_store.refuse_unusable("runs_dir", config.runs_dir)
    if config.tensorboard and mirror.is_url(config.runs_dir):
        raise InputError(
            "tensorboard: its files are written under a local runs_dir only, not to "
            f"{config.runs_dir}; type `--set tensorboard=false`, or give a path as runs_dir"
        )
    check_storage(config.storage)
    _check_two_objectives(config)
    _check_confirm(config)
    _check_rungs(config)
    _warn_of_annealing(config)
    return config


def refuse_uneven_batches(config: SearchConfig) -> None:
    """Raises InputError if the GPUs of a trial can't share out a batch. Asked when it is known that
    there are so many GPUs: a person is told first what is most wrong."""
    if config.resources.members == 1:
        return
    sizes = _choices(config, "optim.batch_size") or [config.optim.batch_size]
    if "optim.batch_size" in config.space and config.space["optim.batch_size"].is_whole:
        sizes = list(range(sizes[0], sizes[1] + 1))
    for point in [*({"optim.batch_size": size} for size in sizes), *config.given_points]:
        config.trial(point)


def refuse_without_axes(config: SearchConfig, yaml: str) -> None:
    """Raises InputError for a new search that has nothing to search. `yaml` names its file."""
    if config.space:
        return
    own = config.model_fields_set - set(TrainConfig.model_fields) - {"space"}
    if config.name == Path(yaml).stem:
        own -= {"name"}  # which the file need not say
    first = f"take {few(sorted(own))} out and " if own else ""
    raise InputError(
        "space: there is nothing to search; type `space: {optim.learning_rate: {log_uniform: "
        f"[1e-6, 1e-4]}}}}`. One trial needs no search: {first}type "
        f"`python -m dpo_train {yaml} --out my-model`"
    )


def _check_optimizers(config: SearchConfig) -> None:
    for name in config.optimizers - {"adamw"}:
        if name.startswith("paged") and not config.resources.gpus:
            raise InputError(
                f"optim.name: {name} has pages on a GPU only; type `{name.removeprefix('paged_')}`"
            )
        if config.resources.sharded:
            raise InputError(
                f"optim.name: {name} can't be shared out; type `--set resources.sharded=false`, or "
                "take adamw"
            )


def _check_grid(config: SearchConfig) -> None:
    if not config.space:
        raise InputError("sampler: a grid needs a space")
    points = len(config.first_points)
    # Points of an earlier search come on top, and are checked again once they are known.
    if config.total_trials > points and isinstance(config.points, list):
        raise InputError(
            f"trials: {config.trials} of a grid that has {points} points; leave trials out, or "
            "take another sampler"
        )


def _check_two_objectives(config: SearchConfig) -> None:
    first, second, stopping = config.goal.metric, config.goal.second, config.stopping
    if second is None:
        return
    if first == "eval/drift":
        raise InputError(
            "objective: eval/drift comes first, so every trial would stand for its first report, "
            f"where it has learnt least; type `objective: [{second.metric}, eval/drift]`"
        )
    if config.sampler.name == "cmaes":
        raise InputError(
            "sampler: cmaes knows one objective; with two type `sampler: {name: tpe}`, or gp, "
            "random or grid"
        )
    if stopping.name == "median":
        raise InputError(
            "stopping: the median rule knows one objective; with two type "
            "`stopping: {name: asha}`, or none"
        )
    if stopping.name == "asha" and stopping.metric == second.metric:
        raise InputError(
            f"stopping.metric: {stopping.metric} is the second objective, so the rungs would "
            f"compare it with itself; type `--set stopping.metric={first}`"
        )


def _check_confirm(config: SearchConfig) -> None:
    if config.confirm is None:
        return
    if "seed" in config.space:
        raise InputError(
            "confirm: it trains the finalists with seeds of its own, so seed can't be an axis; "
            "take it out of the space"
        )


def _check_rungs(config: SearchConfig) -> None:
    grace, every = config.stopping.grace_pairs, config.eval_every_pairs
    if every is None:
        config.base_trial()  # whose evaluations are the rungs: a batch must not step over one
    elif config.stopping.name != "none" and grace % every:
        below, above = max(1, grace // every) * every, math.ceil(grace / every) * every
        nearest = " or ".join(str(value) for value in sorted({below, above}))
        raise InputError(
            f"stopping.grace_pairs: {grace} is no multiple of eval_every_pairs {every}, so no "
            f"trial would be measured at the rungs; the nearest that fit: {nearest}"
        )


def _warn_of_annealing(config: SearchConfig) -> None:
    schedules = {config.optim.schedule} | set(_choices(config, "optim.schedule"))
    annealed = schedules & {"linear", "cosine"}
    if annealed and "optim.epochs" in config.space and config.stopping.name == "asha":
        warnings.warn(
            f"schedule {' and '.join(sorted(annealed))} with epochs searched under ASHA: a rung "
            "compares trials at different points of their annealing; constant_with_warmup "
            "compares like with like",
            UserWarning,
            stacklevel=2,
        )


def _choices(config: SearchConfig, path: str) -> list[Any]:
    return config.space[path].corners if path in config.space else []


def check_storage(storage: str | None) -> None:
    """Refuses what can be seen to be wrong before anything is imported. Raises InputError."""
    try:
        url = urlsplit(storage or "")
        password, options = url.password, set(parse_qs(url.query, keep_blank_values=True))
    except ValueError:
        raise InputError("storage: it begins like a URL, and is none") from None
    if password is not None or (url.scheme and options - set(_STORAGE_OPTIONS)):
        raise InputError(
            "storage: the URL holds a password or an option that is not known, and would be saved "
            f"with the search; options may be {', '.join(_STORAGE_OPTIONS)}; give a password as "
            "PostgreSQL's own PGPASSWORD or ~/.pgpass"
        )
