"""Estimates the memory of a search from the number of trials that run at once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property

from dpo_train import footprint
from dpo_train.config import TrainConfig
from dpo_train.footprint import Footprint
from dpo_train.row_lengths import RowLengths
from tune.config.schema import SearchConfig

_RAY_BYTES = 650_000_000
"""Memory of the driver, Ray's own processes and the trackers' child process; measured."""
_WORKER_BYTES = 60_000_000
"""Memory that Ray adds to a process that trains; measured."""
_LIGHT_BYTES = 120_000_000
"""Memory of a packed trial's own process, which holds no model; measured."""


@dataclass(frozen=True)
class Need:
    """The memory that a search takes with `at_once` trials at a time; in bytes."""

    at_once: int
    processes: int
    """Processes that train: engines with `trainer: packed`, otherwise one per trial."""
    trials_each: int
    """Trials in one process."""
    tokens: int
    """Tokens of the largest pass."""
    private: int
    """Memory of one process."""
    shared: int
    """Memory that all processes map together: weights and libraries."""
    others: int
    """Memory of the driver, Ray, and the light processes of packed trials."""

    @property
    def total(self) -> int:
        """The memory of the whole search."""
        return self.processes * self.private + self.shared + self.others


@dataclass(frozen=True)
class Estimate:
    """Computes the memory of a search from the number of trials at once."""

    config: SearchConfig
    trial: TrainConfig
    """The trial that needs most memory."""
    lengths: RowLengths
    footprint: Footprint
    switched_on: str = ""
    """Says that activation checkpointing is counted, because nothing fits without it."""

    def need(self, at_once: int, available: int | None) -> Need:
        """Return the need with passes that fit into `available` bytes; None allows full batches."""
        packed = self.config.trainer == "packed"
        processes = processes_of(self.config, at_once)
        each = -(-at_once // processes) if packed else 1
        one, light = self.footprint, at_once * _LIGHT_BYTES if packed else 0
        shared = footprint.LIBRARIES_BYTES + (one.weights if one.is_mapped else 0)
        tokens, batch = self._wanted_tokens(each)
        if available is not None:
            left = (available - shared - light - _RAY_BYTES) // processes - _WORKER_BYTES
            tokens = max(self.least_tokens, min(tokens, one.tokens_that_fit(left, each)))
        in_parts = not packed and tokens < batch
        return Need(
            at_once=at_once,
            processes=processes,
            trials_each=each,
            tokens=tokens,
            private=one.private(each, tokens, in_parts) + _WORKER_BYTES,
            shared=shared,
            others=light + _RAY_BYTES,
        )

    @cached_property
    def least_tokens(self) -> int:
        """Tokens of a pass over the longest pair alone."""
        if self.config.trainer == "packed":
            return self.lengths.longest_packed
        return 2 * self.lengths.longest_row.row

    def _wanted_tokens(self, trials: int) -> tuple[int, int]:
        """Return the tokens of the largest pass and of a whole batch, if memory sets no limit."""
        optim, members = self.trial.optim, self.config.resources.members
        if self.config.trainer == "packed":
            largest = self.lengths.largest_pass(trials, optim.pairs_at_once)
            wanted = max(self.least_tokens, min(footprint.MOST_TOKENS[self.config.device], largest))
            return wanted, wanted
        at_once = max(1, optim.pairs_at_once // members)
        return at_once * self.least_tokens, optim.batch_size // members * self.least_tokens

    def one_line(self, need: Need) -> str:
        """Describe the memory of one process, and what it consists of."""
        one, each = self.footprint, need.trials_each
        parts = [f"{gb(one.process + _WORKER_BYTES)} process"]
        if not one.is_shared:
            parts.append(f"{gb(one.weights)} weights")
        if one.own_weights:
            parts.append(f"{gb(one.own_weights)} weights of its own")
        many = f"of {each} trials" if each > 1 else "of a trial"
        what = "optimizer" if self.trial.lora is None else "adapter and optimizer"
        parts.append(f"{gb(each * one.trial)} {what} {many}")
        parts.append(f"{gb(need.private - _WORKER_BYTES - one.fixed(each))} for a pass of "
                     f"{need.tokens:,} tokens")  # fmt: skip
        where = "" if self.config.device == "cpu" else " of GPU memory"
        line = f"about {gb(need.private)} GB{where}: {', '.join(parts)}"
        if one.is_mapped:
            line += f"; and {gb(one.weights)} weights that all processes share"
        return line


def processes_of(config: SearchConfig, at_once: int) -> int:
    """How many processes hold a model when so many trials run at once: of packed trials one for
    each CPU of this machine, or one for a GPU."""
    if config.trainer != "packed":
        return at_once
    return 1 if config.device == "cuda" else min(cpus(), at_once)


def cpus() -> int:
    """Return the number of CPUs of this machine."""
    return os.cpu_count() or 1


def gb(count: float) -> str:
    """Return bytes as gigabytes, in words of `doctor`."""
    gigabytes = count / 1e9
    return f"{gigabytes:.2f}" if gigabytes < 1 else f"{gigabytes:.1f}"
