"""Trains a trial again from its record, and says how far the numbers agree."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from dpo_train.config_base import override
from dpo_train.errors import Diverged, InputError
from dpo_train.quiet import quieten_libraries
from dpo_train.trainers.open import open_session
from tune.config.objective import Report
from tune.run_folder.folder import find_run, open_run
from tune.run_folder.paths import RunLike
from tune.search.prepared_data import find_prepared_data

_NOT_OF_TRAINING = ("pairs_per_second", "tokens_per_second", "train_seconds", "eval_seconds",
                    "peak_memory_gb")  # fmt: skip


@dataclass(frozen=True)
class Replay:
    """What came of it: the largest difference over all reports and metrics, and where."""

    reports: int
    difference: float
    metric: str
    pairs_seen: int

    @property
    def is_exact(self) -> bool:
        return self.difference == 0

    def __str__(self) -> str:
        if self.is_exact:
            return f"{self.reports} reports, all numbers the same to the last bit"
        return (
            f"{self.reports} reports; the largest difference is {self.difference:.2g}, of "
            f"{self.metric} at {self.pairs_seen} pairs"
        )


def replay(
    run_folder: RunLike,
    trial: str,
    watch: Callable[[Report, Report], None] | None = None,
) -> Replay:
    """Trains a trial as far as it came, in this process and without Ray, and compares.

    `watch` is given each report as recorded and as it is now. By `trainer: trl` on a CPU the
    numbers are the same to the last bit; a packed trial's last digits depend on its neighbours, and
    on a GPU sums are not associative. Raises InputError.
    """
    folder = find_run(run_folder)
    run = open_run(folder)
    config, records = run.config, run.records
    record = records.find(trial)
    if not record.curve:
        raise InputError(f"{trial} has no report to compare with ({record.state})")
    if record.warm:
        raise InputError(
            f"{trial} started from the weights of {record.cloned_from}, which are not kept for it"
        )
    if config.trainer != "simulated":
        import torch  # takes seconds, and a simulated trial needs none

        find_prepared_data(config, records)
        # As many as Ray gave the trial: sums are split by the threads.
        torch.set_num_threads(max(1, int(config.resources.cpus)))
    prepared = records.run.prepared_folder
    asked = config.trial(record.config)
    if record.micro_batch:
        asked = override(asked, {"optim.micro_batch_size": record.micro_batch})
    session = open_session(asked, prepared, records.run.device)
    worst = (0.0, "", 0)
    try:
        compared = 0
        for then in record.curve:
            try:
                now = session.advance().report
            except Diverged:
                worst = (math.inf, "train/loss", int(then["pairs_seen"]))
                compared += 1
                break
            if now["pairs_seen"] != then["pairs_seen"]:
                raise InputError(
                    f"{trial}: it reported at {then['pairs_seen']:.0f} pairs, and trained again it "
                    f"reports at {now['pairs_seen']:.0f}; an earlier version let it train on after "
                    "its end, which can't be replayed any more"
                )
            if watch:
                watch(then, now)
            worst = max(worst, _difference(then, now))
            compared += 1
    finally:
        session.close()
    return Replay(compared, *worst)


def print_replay(run_folder: RunLike, trial: str) -> None:
    """The same, printed report by report."""
    quieten_libraries()
    print(f"{'pairs':>8} {'eval/accuracy':>24} {'eval/nll':>24}   as recorded, as it is now")

    def watch(then: Report, now: Report) -> None:
        columns = (
            f"{then[name]:>11.6f}  {now[name]:>11.6f}" for name in ("eval/accuracy", "eval/nll")
        )
        print(f"{then['pairs_seen']:8.0f} {' '.join(columns)}", flush=True)

    print(replay(run_folder, trial, watch))


def _difference(then: Report, now: Report) -> tuple[float, str, int]:
    compared = [name for name in then if name not in _NOT_OF_TRAINING]
    differences = {name: abs(then[name] - now[name]) for name in compared}
    differences = {name: x if math.isfinite(x) else math.inf for name, x in differences.items()}
    name = max(differences, key=differences.__getitem__)
    return differences[name], name, int(then["pairs_seen"])
