"""Trains a trial to its end, and compares numbers that do not depend on the clock."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from dpo_train.config import TrainConfig
from dpo_train.trainers.open import open_session
from tests.conftest import ROOT


def curve(trial: TrainConfig, prepared: Path) -> list[dict[str, float]]:
    """Train a trial to its end and return its reports."""
    session = open_session(trial, prepared, "cpu")
    try:
        reports = [session.advance().report]
        while reports[-1]["pairs_seen"] < session.pairs_total:
            reports.append(session.advance().report)
        return reports
    finally:
        session.close()


def numbers(report: dict[str, float]) -> dict[str, float]:
    """Return a report without the values that depend on the clock."""
    return {name: value for name, value in report.items() if "second" not in name}


def goes_on_from_between_two_reports(trial: TrainConfig, prepared: Path, folder: Path) -> None:
    """Check that a trial saved between two reports later reports the same as without a break."""
    uninterrupted = [numbers(report) for report in curve(trial, prepared)]
    session = open_session(trial, prepared, "cpu")
    begun = [numbers(session.advance().report)]
    while session.pairs_done <= begun[0]["pairs_seen"]:
        assert session.advance_for(0) is None
    saved = session.save(folder / "between")
    assert begun[0]["pairs_seen"] < saved < uninterrupted[1]["pairs_seen"]
    begun.append(numbers(session.advance().report))  # saving changed nothing
    while session.advance_for(0) is None:
        pass  # the next report comes from an evaluation that nobody waited for
    session.close()
    assert begun == uninterrupted[:2]
    restored = open_session(trial, prepared, "cpu")
    restored.restore(folder / "between")
    rest = [numbers(restored.advance().report) for _ in range(len(uninterrupted) - 1)]
    restored.close()
    assert rest == uninterrupted[1:]


def goes_on_to_the_last_bit(trial: TrainConfig, prepared: Path, folder: Path) -> None:
    """Check that a saved and restored trial gives the same numbers as without a break."""
    uninterrupted = [numbers(report) for report in curve(trial, prepared)]
    session = open_session(trial, prepared, "cpu")
    begun = [numbers(session.advance().report) for _ in range(3)]
    session.save(folder / "state")
    begun.append(numbers(session.advance().report))  # saving changed nothing
    session.close()
    assert begun == uninterrupted[:4]
    restored = open_session(trial, prepared, "cpu")
    restored.restore(folder / "state")
    rest = [numbers(restored.advance().report) for _ in range(len(uninterrupted) - 3)]
    restored.close()
    assert rest == uninterrupted[3:]


def stock_results(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the result of a stock DPOTrainer for each case, from a process of its own.
    stock_dpo.py describes cases and results."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "helpers" / "stock_dpo.py")],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return results
