"""`dpo-tune replay`: trains a trial again from its record and compares the numbers."""

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

_NOT_COMPARED = ("pairs_per_second", "tokens_per_second", "train_seconds", "eval_seconds",
                 "peak_memory_gb")  # fmt: skip


@dataclass(frozen=True)
class Replay:
    """The result of a replay: the largest difference over all reports and metrics."""

    reports: int
    difference: float
    metric: str
    pairs_seen: int

    @property
    def is_exact(self) -> bool:
        """Whether all numbers are the same to the last bit."""
        return self.difference == 0

    def __str__(self) -> str:
        if self.is_exact:
            return f"{self.reports} reports; all numbers are the same to the last bit"
        return (
            f"{self.reports} reports; the largest difference is {self.difference:.2g}, in "
            f"{self.metric} at {self.pairs_seen} pairs"
        )


def replay(
    run_folder: RunLike,
    trial: str,
    watch: Callable[[Report, Report], None] | None = None,
) -> Replay:
    """Train a trial again as far as it came, in this process without Ray, and compare the reports.

    `watch` gets each report as it was recorded and as it is now. With `trainer: trl` on a CPU the
    numbers are the same to the last bit. The last digits of a packed trial depend on the trials
    that train beside it, and numbers of a GPU are not reproducible to the bit. Raises InputError.
    """
    # --- refuse trials that can't be replayed ---
    folder = find_run(run_folder)
    run = open_run(folder)
    config, records = run.config, run.records
    record = records.find(trial)
    if not record.curve:
        raise InputError(
            f"{trial} has no report to compare with (it is {record.state}); type another trial"
        )
    if record.warm:
        raise InputError(
            f"{trial} started from the weights of {record.cloned_from}, which are no longer "
            "stored; type another trial"
        )

    # --- open a session like the trial's ---
    if config.trainer != "simulated":
        import torch  # takes seconds, and a simulated trial needs none

        find_prepared_data(config, records)
        # The number of threads decides how sums are split, so we take as many as the trial had.
        torch.set_num_threads(max(1, int(config.resources.cpus)))
    prepared = records.run.prepared_folder
    trial_config = config.trial(record.config)
    if record.micro_batch:
        trial_config = override(trial_config, {"optim.micro_batch_size": record.micro_batch})
    session = open_session(trial_config, prepared, records.run.device)

    # --- train from report to report, and compare ---
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
                    f"{trial}: the record has a report at {then['pairs_seen']:.0f} pairs, the "
                    f"replay one at {now['pairs_seen']:.0f}: an earlier version trained it beyond "
                    "its end, so it can't be replayed; type another trial"
                )
            if watch:
                watch(then, now)
            worst = max(worst, _difference(then, now))
            compared += 1
    finally:
        session.close()
    return Replay(compared, *worst)


def print_replay(run_folder: RunLike, trial: str) -> None:
    """Replay a trial and print each report as it comes."""
    quieten_libraries()
    print(
        f"{'pairs':>8} {'eval/accuracy':>24} {'eval/nll':>24}   each as recorded, and as replayed"
    )

    def watch(then: Report, now: Report) -> None:
        columns = (
            f"{then[name]:>11.6f}  {now[name]:>11.6f}" for name in ("eval/accuracy", "eval/nll")
        )
        print(f"{then['pairs_seen']:8.0f} {' '.join(columns)}", flush=True)

    print(replay(run_folder, trial, watch))


def _difference(then: Report, now: Report) -> tuple[float, str, int]:
    compared = [name for name in then if name not in _NOT_COMPARED]
    differences = {name: abs(then[name] - now[name]) for name in compared}
    differences = {name: x if math.isfinite(x) else math.inf for name, x in differences.items()}
    name = max(differences, key=differences.__getitem__)
    return differences[name], name, int(then["pairs_seen"])
