"""Fits the processes of a search into this machine's memory: estimates what they take, lowers the
number of trials at once, or refuses. It knows nothing of a cluster's other machines.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dpo_train import footprint, memory
from dpo_train.config import TrainConfig
from dpo_train.config_base import override
from dpo_train.data import Row
from dpo_train.errors import InputError, one_line
from dpo_train.footprint import Footprint
from dpo_train.reference_pass.rows import read_rows
from dpo_train.row_lengths import RowLengths, row_lengths
from tune.config.schema import SearchConfig
from tune.search import memory_estimate
from tune.search.largest_trial import largest_trial
from tune.search.memory_estimate import Estimate, Need, gb, processes_of
from tune.search.preflight import stated_shape
from tune.workers.memory_share import search_bytes

_SMALL_SHARE = 0.1
"""If a crude upper bound is below this share of the free memory, no closer estimate is made."""
_CHECKPOINTING = "optim.activation_checkpointing"


@dataclass(frozen=True)
class MemoryPlan:
    """A search that fits into this machine's memory."""

    config: SearchConfig
    """The config, with `resources.at_once` lowered if necessary."""
    message: str = ""
    """Says in one line what was changed; empty if nothing was."""
    need: Need | None = None
    available: int = 0


def lines(config: SearchConfig, rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of `dpo-tune doctor` about memory. `config.model` must be resolved.

    Raises InputError after the first line if not even one trial fits.
    """
    # --- what one process takes ---
    try:
        estimate = _estimate(config, rows)
    except InputError:
        raise
    except Exception as error:  # an architecture that transformers or PEFT can't build from config
        yield f"memory       can't be estimated for this model ({one_line(error)})"
        return
    name = "one engine " if config.trainer == "packed" else "one trial  "
    if config.device != "cpu" or os.environ.get("RAY_ADDRESS"):
        yield f"{name}  {estimate.one_line(estimate.need(_most_on_a_device(config), None))}"
        return
    available = _available()
    most = _most_at_once(config)
    estimate = _with_checkpointing_if_needed(estimate, available)
    need = next(_fitting(estimate, most, available), estimate.need(1, available))
    yield f"{name}  {estimate.one_line(need)}"

    # --- what the whole search takes, and what is lowered ---
    plan = _plan(estimate, available)
    if need.processes == need.at_once:
        trials = f"{need.at_once} trials" if need.at_once > 1 else "1 trial"
    else:
        trials = f"{need.processes} engines with {need.at_once} trials"
    yield (
        f"all at once  about {gb(need.total)} GB: {trials} and Ray; the search may use "
        f"{gb(available)} GB ({_rule()})"
    )
    if plan.message:
        yield f"             {plan.message}"


def plan_memory(config: SearchConfig, rows: Sequence[Row]) -> MemoryPlan:
    """Return the search with as many trials at once as fit into this machine's memory.

    `rows` are those of its dataset. Small models take no time. Raises InputError if not even one
    trial fits with one pair at once.
    """
    available = _available()
    if config.trainer == "simulated" or _crude_bound(config) < _SMALL_SHARE * available:
        return MemoryPlan(config)
    try:
        estimate = _estimate(config, rows)
    except InputError:
        raise
    except Exception as error:  # an architecture that transformers or PEFT can't build from config
        message = f"memory can't be estimated for this model ({one_line(error)})"
        return MemoryPlan(config, message)
    return _plan(_with_checkpointing_if_needed(estimate, available), available)


def fit_into_memory(config: SearchConfig, prepared: Path) -> SearchConfig:
    """Return the config with as many trials at once as fit, and print if they are fewer.

    Memory of GPUs and of a cluster's machines is not checked. `prepared` is the folder of the
    planned data. Raises InputError if not even one trial fits.
    """
    if config.trainer == "simulated" or config.device != "cpu" or os.environ.get("RAY_ADDRESS"):
        return config
    plan = plan_memory(config, [row for _, row in read_rows(prepared)])
    if plan.message:
        print(f"{config.name}: {plan.message}", flush=True)
    return plan.config


def _plan(estimate: Estimate, available: int) -> MemoryPlan:
    config = estimate.config
    most = _most_at_once(config)
    need = next(_fitting(estimate, most, available), None)
    if need is None:
        least = estimate.need(1, 0)
        with_it = " and activation checkpointing" if estimate.switched_on else ""
        raise InputError(
            f"memory: one trial with one pair at once{with_it} takes about {gb(least.total)} GB "
            f"with Ray, but the search may use {gb(available)} GB ({_rule()}); {_remedy(config)}"
        )
    if need.at_once == most:
        return MemoryPlan(config, estimate.switched_on, need, available)
    resources = config.resources.model_copy(update={"at_once": need.at_once})
    lowered = (
        f"resources.at_once is lowered from {most} to {need.at_once}: more trials don't fit into "
        f"the {gb(available)} GB that the search may use ({_rule()})"
    )
    message = "; ".join(filter(None, (estimate.switched_on, lowered)))
    return MemoryPlan(config.model_copy(update={"resources": resources}), message, need, available)


def _with_checkpointing_if_needed(estimate: Estimate, available: int) -> Estimate:
    """Count activation checkpointing if nothing fits without it: then trials switch it on."""
    least = estimate.need(1, 0).total
    if least <= available or estimate.trial.optim.activation_checkpointing is not None:
        return estimate
    trial = override(estimate.trial, {_CHECKPOINTING: True})
    switched_on = (
        f"{_CHECKPOINTING} is switched on: without it one pair at once takes about {gb(least)} GB"
    )
    try:
        one = _footprint(estimate.config, trial, estimate.lengths)
    except InputError:  # the layers of this model can't be computed again
        return estimate
    return replace(estimate, trial=trial, footprint=one, switched_on=switched_on)


def _fitting(estimate: Estimate, most: int, available: int) -> Iterator[Need]:
    """Yield the needs that fit, with the most trials at once first. A pass may be one pair."""
    for at_once in range(most, 0, -1):
        if estimate.need(at_once, 0).total <= available:
            yield estimate.need(at_once, available)


def _estimate(config: SearchConfig, rows: Sequence[Row]) -> Estimate:
    trial = largest_trial(config)
    lengths = row_lengths(config.model, config.data, rows)
    return Estimate(config, trial, lengths, _footprint(config, trial, lengths))


def _footprint(config: SearchConfig, trial: TrainConfig, lengths: RowLengths) -> Footprint:
    one = footprint.footprint(trial, lengths, config.device)
    if not config.resources.sharded:
        return one
    split = ("weights", "trial", "gradients")
    per_gpu = {name: getattr(one, name) // config.resources.members for name in split}
    return replace(one, **per_gpu)


def _crude_bound(config: SearchConfig) -> int:
    """Return an upper bound of what the passes and weights of all processes take, without torch."""
    shape = stated_shape(config.model)
    width, layers = shape.width, shape.layers
    weights = 4 * (20 * layers * width**2 + 2 * shape.words * width)
    at_once = _most_at_once(config)
    processes = processes_of(config, at_once)
    return processes * (6 * weights + 60 * width * layers * 4 * footprint.MOST_TOKENS["cpu"])


def _most_on_a_device(config: SearchConfig) -> int:
    """The most trials that share a GPU; on CPUs those that run at once."""
    gpus = config.resources.gpus
    if not gpus:
        return _most_at_once(config)
    hold = int(1 / min(1, gpus))
    return min(hold, config.resources.at_once or hold, config.total_trials)


def _most_at_once(config: SearchConfig) -> int:
    resources = config.resources
    hold = max(1, int(memory_estimate.cpus() / resources.cpus))
    return min(hold, resources.at_once or hold, config.total_trials)


def _available() -> int:
    return search_bytes()


def _rule() -> str:
    limit, used = memory.memory_limit_bytes(), memory.memory_used_bytes()
    return f"of {gb(limit)} GB, {gb(used)} GB are in use now, and some stay free"


def _remedy(config: SearchConfig) -> str:
    if config.lora is None:
        return "type `--set lora={}` to train an adapter, or give a smaller model.id"
    half = config.data.max_length_tokens // 2
    return (
        f"type `--set data.max_length_tokens={half}` to leave out longer pairs, close other "
        "programs, or give a smaller model.id"
    )
