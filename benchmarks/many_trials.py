"""Measures the driver's work between two reports, `dpo-tune show` and the report, for a search of
many trials.

    PYTHONPATH=. python benchmarks/many_trials.py [TRIALS]

Makes a run folder with that many ended trials, each with four reports of 100 held-out pairs, and
calls the search as Ray Tune does. Prints medians and the worst values in milliseconds.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from dpo_train.config_base import parse
from tests.helpers.driver import Driver, result_of
from tune.config.checks import check
from tune.config.schema import SearchConfig
from tune.report import page
from tune.report.terminal import render
from tune.run_folder.assemble import current_results
from tune.run_folder.held_out import HeldOut
from tune.run_folder.paths import RunFolder
from tune.run_folder.records import Records
from tune.run_folder.run_info import create_run
from tune.run_folder.step import Step
from tune.run_folder.trial_record import TrialRecord
from tune.run_folder.yaml_file import write_yaml
from tune.workers.outcome import Ending, Outcome

PAIRS = 100
RUNGS = (64, 192, 576, 1728)
TIMES = 30
SEARCH: dict[str, Any] = {
    "trials": 100_000,
    "space": {
        "optim.learning_rate": {"log_uniform": [1e-6, 1e-2]},
        "dpo.beta": {"uniform": [0.05, 0.5]},
        "optim.batch_size": {"choice": [4, 8, 16, 32]},
        "lora": {"choice": [None, {"alpha": 32}]},
        "lora.r": {"int": [4, 64], "when": {"lora": "not null"}},
    },
    "confirm": {"finalists": 2, "seeds": 2},
}


def main(trials: int) -> None:
    print(f"{trials} trials with {len(RUNGS)} reports of {PAIRS} held-out pairs; milliseconds")
    print(f"{'':34} {'median':>8} {'worst':>8}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        search = {"name": "x", "trainer": "simulated", **SEARCH}
        config = check(parse(SearchConfig, search, {}, "x.yaml"))
        write_yaml(folder / "search.yaml", config)
        create_run(RunFolder.at(folder), Path(), "cpu")
        make_up(folder, trials)
        row("reading the records", [timed(lambda: Records(RunFolder.at(folder), config.goal))])
        row("dpo-tune show", [timed(lambda: render(current_results(folder))) for _ in range(3)])
        results = current_results(folder)
        row("report.html", [timed(lambda: page.write(results)) for _ in range(3)])
        print(f"{'its bytes':34} {results.folder.report_html.stat().st_size:8,}")
        for sampler in ("random", "tpe"):
            play(folder, sampler)


def make_up(folder: Path, trials: int) -> None:
    """Write the run folder."""
    draw = np.random.default_rng(0)
    for number in range(trials):
        reports, held_out = zip(*(measure(draw, number, pairs) for pairs in RUNGS), strict=True)
        point: dict[str, Any] = {
            "optim.learning_rate": float(10 ** draw.uniform(-6, -2)),
            "dpo.beta": float(draw.uniform(0.05, 0.5)),
            "optim.batch_size": int(draw.choice([4, 8, 16, 32])),
            "lora": None,
        }
        record = TrialRecord(
            id=f"made-{number:03d}", state="stopped" if number % 3 else "finished", config=point,
            metrics=reports[-1], curve=list(reports), began=1.0, ended=2.0, seconds=1.0,
        )  # fmt: skip
        trial = folder / "trials" / record.id
        trial.with_suffix(".json").write_text(record.model_dump_json(indent=1))
        columns = {
            column: np.stack([getattr(each, column) for each in held_out])
            for column in ("chosen", "rejected", "token_margin")
        }
        with trial.with_suffix(".npz").open("wb") as file:
            np.savez(file, allow_pickle=False, pairs_seen=np.array(RUNGS), **columns)


def measure(
    draw: np.random.Generator, number: int, pairs_seen: int
) -> tuple[dict[str, float], HeldOut]:
    """Return a report whose margins get better with training; some trials are better."""
    better = 1.5 * np.random.default_rng(number).beta(2, 2) * (pairs_seen / RUNGS[-1]) ** 0.3
    margins = draw.normal(better, 1, PAIRS).astype(np.float32)
    held_out = HeldOut(margins, 0 * margins, (margins / 10).astype(np.float32))
    report = {"pairs_seen": pairs_seen, "eval/drift": 1.0, "eval/loss": 0.5, "eval/margin": better}
    report |= dict.fromkeys(("eval/accuracy", "eval/ranking"), float((margins > 0).mean()))
    report["eval/nll"] = float(np.log1p(np.exp(-margins)).mean())
    return report, held_out


def play(folder: Path, sampler: str) -> None:
    """Request trials, and let each report at every rung and end."""
    took: dict[str, list[float]] = {"opening": [], "a proposal": [], "a report": [], "an end": []}
    took["… of it the wait for the disk"] = []
    draw = np.random.default_rng(1)
    driver, trial = None, None

    def opened() -> None:
        nonlocal driver
        driver = Driver(folder, **SEARCH, sampler={"name": sampler})

    def proposed() -> None:
        nonlocal trial
        assert driver is not None
        trial = driver.start()

    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        took["opening"].append(timed(opened))
        assert driver is not None
        for number in range(TIMES):
            took["a proposal"].append(timed(proposed))
            for pairs in RUNGS:
                report, held_out = measure(draw, number, pairs)
                step = Step(report, began=1.0, seconds=1.0, held_out=held_out)
                took["a report"].append(timed(reported(driver, trial, result_of(step))))
            with disk_waits() as waits:
                took["an end"].append(timed(ended(driver, trial)))
            took["… of it the wait for the disk"].append(sum(waits))
    for what, milliseconds in took.items():
        row(f"{sampler}: {what}", milliseconds)


def reported(driver: Driver, trial: Any, result: dict[str, Any]) -> Callable[[], object]:
    """Return a function that reports a result for a trial."""
    return lambda: driver.scheduler.on_trial_result(None, trial, result)


def ended(driver: Driver, trial: Any) -> Callable[[], object]:
    """Return a function that ends a stopped trial and makes the view of progress after it."""

    def end() -> None:
        driver.end(trial, Outcome(Ending.STOPPED))
        driver.searcher.progress.view()

    return end


@contextmanager
def disk_waits() -> Iterator[list[float]]:
    """Yield a list of the milliseconds that each sync takes."""
    waits: list[float] = []
    fsync = os.fsync
    os.fsync = lambda fd: waits.append(timed(lambda: fsync(fd)))
    try:
        yield waits
    finally:
        os.fsync = fsync


def timed(act: Callable[[], object]) -> float:
    """Return the milliseconds of a call."""
    began = time.perf_counter()
    act()
    return 1000 * (time.perf_counter() - began)


def row(what: str, milliseconds: list[float]) -> None:
    """Print a row of milliseconds."""
    print(f"{what:34} {median(milliseconds):8.1f} {max(milliseconds):8.1f}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
