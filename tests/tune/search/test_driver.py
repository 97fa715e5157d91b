"""Whole searches with simulated sessions on real Ray processes: how drivers start, end and die."""

import json
import math
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from dpo_train import sample
from tests.conftest import Run, Start
from tests.helpers.placements import placements
from tests.helpers.run_records import records_of
from tests.helpers.simulated_search import (
    hurry,
    wait_for_ended,
    wait_until,
)
from tune import load_results

pytestmark = pytest.mark.slow


@pytest.mark.usefixtures("shared_ray")
def test_a_search_ends_with_a_winner_and_says_how_to_go_on(
    tmp_path: Path, yaml: Path, dpo_tune: Run
) -> None:
    done = dpo_tune("run", yaml)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "sim"
    results = json.loads((run / "results.json").read_text())
    assert results["schema"] == 1
    assert len(results["trials"]) == 12
    assert {"id", "state", "config", "metrics", "curve", "error"} <= set(results["trials"][0])
    assert {trial["state"] for trial in results["trials"]} == {"finished", "stopped"}
    best = max(trial["metrics"]["eval/accuracy"] for trial in results["trials"])
    assert results["winner"]["eval"]["accuracy"] == best
    assert results["winner"]["trial"] in done.stdout
    assert (run / "winner" / "trial.json").exists()
    assert len(list((run / "best").iterdir())) == 3
    assert not any((run / "state").iterdir())
    again = f"{sys.executable} -m tune resume runs/sim --trials +8"
    assert f"more trials: {again}\n" in done.stdout

    before = {path.name: path.stat().st_mtime_ns for path in (run / "trials").iterdir()}
    finished = dpo_tune("run", yaml)
    assert finished.returncode == 0
    line = f"; nothing was run now; for more trials: {again}\n"
    assert re.search(f"sim already ended on .*{re.escape(line)}", finished.stdout)
    assert results["winner"]["trial"] in finished.stdout
    assert {p.name: p.stat().st_mtime_ns for p in (run / "trials").iterdir()} == before

    other = dpo_tune("run", yaml, "--set", "dpo.beta=0.2")
    assert other.returncode == 2
    assert "holds another search (dpo.beta is 0.1 there, 0.2 here); give " in other.stderr

    more = dpo_tune("resume", "sim", "--trials", "+3")
    assert more.returncode == 0, more.stderr
    grown = load_results(run)
    assert [trial.id for trial in grown.trials[:12]] == [t["id"] for t in results["trials"]]
    assert json.loads(grown.to_json())["trials"][:12] == results["trials"]
    assert len(grown.trials) == 15


@pytest.mark.usefixtures("shared_ray")
def test_a_signal_ends_with_130_and_the_search_can_go_on(
    tmp_path: Path, yaml: Path, dpo_tune: Run, start: Start
) -> None:
    run = tmp_path / "runs" / "sim"
    slowly = ("--set", "simulated.seconds_per_report=2")
    process = start("run", yaml, *slowly)
    wait_for_ended(run, 1, process)
    second = dpo_tune("run", yaml, *slowly)
    assert second.returncode == 2
    assert "another process runs this search now" in second.stderr
    process.send_signal(signal.SIGTERM)  # becomes SIGINT inside
    began = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - began < 20
    assert process.returncode == 130, output
    assert f"to go on: {sys.executable} -m tune resume runs/sim\n" in output
    waiting = [record for record in records_of(run) if record.state in ("running", "pending")]
    assert waiting
    shown = dpo_tune("show", "sim").stdout
    assert "interrupted" in shown
    assert "running" not in shown
    assert f"to go on: {sys.executable} -m tune resume runs/sim\n" in shown


@pytest.mark.usefixtures("shared_ray")
def test_trials_that_diverge_are_rows_with_their_error(
    tmp_path: Path, yaml: Path, dpo_tune: Run
) -> None:
    done = dpo_tune(
        "run", yaml, "--set", "simulated.diverges_above=1e-7",
        "--set", "stopping.name=none", "--set", "budget.failures_in_a_row=3",
    )  # fmt: skip
    results = load_results(tmp_path / "runs" / "sim")
    failed = [trial for trial in results.trials if trial.state == "failed"]
    assert len(failed) >= 3
    assert "loss is nan at step 16, learning rate" in (failed[0].error or "")
    assert results.ended == "budget.failures_in_a_row: 3 trials failed"
    # Each trial reported once before it diverged, so there is a winner.
    assert done.returncode == 0
    # There is no winner only if nothing was ever measured.
    assert results.winner is not None


@pytest.mark.usefixtures("shared_ray")
def test_a_search_in_which_nothing_is_measured_exits_1(
    tmp_path: Path, yaml: Path, dpo_tune: Run
) -> None:
    shutil.copytree(sample.MODEL, tmp_path / "broken")
    weights = load_file(tmp_path / "broken" / "model.safetensors")
    weights["model.norm.weight"].fill_(math.nan)
    save_file(weights, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    done = dpo_tune(
        "run", yaml, "--set", "trainer=trl", "--set", f"model.id={tmp_path / 'broken'}",
        "--set", "data.limit=60", "--set", "budget.failures_in_a_row=2", "--set", "trials=3",
        "--set", "resources.at_once=1",
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "there is no winner" in done.stdout
    failed = [record for record in records_of(tmp_path / "runs" / "sim")]
    assert {record.state for record in failed} == {"failed"}
    assert "loss is nan at step" in (failed[0].error or "")
    assert "Traceback" not in done.stdout + done.stderr


def test_a_killed_trial_process_goes_on_from_its_saved_state(
    tmp_path: Path, yaml: Path, start: Start
) -> None:
    run = tmp_path / "runs" / "sim"
    process = start(
        "run", yaml, "--set", "simulated.seconds_per_report=1.5", "--set", "trials=2",
        "--set", "stopping.name=none",
    )  # fmt: skip

    # Take a trial that is half done: on a busy machine the first may end before the second begins.
    def half_done() -> list[str]:
        return [record.id for record in records_of(run) if 3 <= len(record.curve) <= 5]

    wait_until(half_done, process)
    hurry(run)
    killed = half_done()[0]
    (placement,) = (placement for placement in placements(run) if placement["trial"] == killed)
    os.kill(placement["pid"], signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    records = records_of(run)
    assert [record.state for record in records] == ["finished"] * 2
    for record in records:
        assert [point["pairs_seen"] for point in record.curve] == list(range(64, 513, 64))
    # The process that replaced it did not sleep, and did not start from the beginning.
    (again,) = (record for record in records if record.id == killed)
    assert {report["train_seconds"] for report in again.curve[:2]} == {1.5}
    assert again.curve[-1]["train_seconds"] == 0
