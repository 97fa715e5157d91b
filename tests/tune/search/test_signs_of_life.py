"""What a user reads while a search runs; a stop does not wait for an evaluation."""

import re
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import Run, Start
from tests.helpers.run_records import records_of
from tests.helpers.simulated_search import wait_until
from tests.helpers.terminal import run_in
from tune.run_folder import live
from tune.run_folder.live import Live, LiveTrial, describe_live, write_live
from tune.run_folder.paths import RunFolder
from tune.search import signs_of_life
from tune.search.signs_of_life import SignsOfLife
from tune.search.view import View

LONG = """
name: sim
trainer: simulated
eval_every_pairs: 64
trials: 2
simulated: {seconds_per_report: 600}
space: {optim.learning_rate: {log_uniform: [1e-3, 1e-2]}}
stopping: {name: none}
resources: {cpus: 0.5}
wandb: {mode: disabled}
"""


@pytest.mark.slow
@pytest.mark.usefixtures("shared_ray")
def test_show_says_what_runs_and_a_stop_waits_for_no_evaluation(
    tmp_path: Path, start: Start, dpo_tune: Run
) -> None:
    (tmp_path / "sim.yaml").write_text(LONG)
    run = tmp_path / "runs" / "sim"
    process = start("run", "sim.yaml")

    def shown() -> list[str]:
        return [line for line in describe_live(RunFolder.at(run)) if "pairs" in line]

    wait_until(lambda: len(shown()) == 2, process)
    printed = dpo_tune("show", "sim").stdout
    assert "no trial has reported yet" in printed
    assert "running now:" in printed
    first, second = records_of(run)
    for record in (first, second):
        assert f"  {record.id}: training, at " in printed
        assert " of 64 pairs; since " in printed
    assert dpo_tune("stop", "sim", first.id).returncode == 0
    wait_until(lambda: _state(run, first.id) == "stopped", process)
    assert _state(run, second.id) == "running"
    assert dpo_tune("stop", "sim", second.id).returncode == 0
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output  # nothing was measured, so nothing was won
    assert all(record.error == "on request" for record in records_of(run))
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d sim: checking model, data and outputs",
        output.splitlines()[0],
    )
    live = describe_live(RunFolder.at(run))
    assert live == [] or "since" in live[0]


def _state(run: Path, trial: str) -> str:
    return next(record.state for record in records_of(run) if record.id == trial)


@pytest.mark.slow
@pytest.mark.usefixtures("shared_ray")
def test_a_budget_of_hours_waits_for_no_evaluation(tmp_path: Path, dpo_tune: Run) -> None:
    (tmp_path / "sim.yaml").write_text(LONG)
    done = dpo_tune("run", "sim.yaml", "--set", "budget.hours=0.002")
    assert done.returncode == 1, done.stdout + done.stderr
    assert {record.state for record in records_of(tmp_path / "runs" / "sim")} == {"stopped"}


def test_a_driver_that_is_busy_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(signs_of_life, "_SILENCE_SECONDS", 0.2)
    monkeypatch.setattr(signs_of_life, "_TICK_SECONDS", 0.05)
    with SignsOfLife() as signs:
        signs.doing("starting Ray")
        time.sleep(1)
        signs.follow(lambda: View(doing="tokenised 3 of 8 rows"))
        time.sleep(1)
    lines = capsys.readouterr().out.splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in lines)
    assert sum(line.endswith(" starting Ray") for line in lines) >= 2
    assert sum(line.endswith(" tokenised 3 of 8 rows") for line in lines) >= 2


@pytest.mark.slow
@pytest.mark.usefixtures("shared_ray")
def test_the_live_lines_of_a_running_search_never_wrap(tmp_path: Path, yaml: Path) -> None:
    quick = ["--set", "trials=6", "--set", "simulated.seconds_per_report=0.4"]
    command = [sys.executable, "-m", "tune", "run", str(yaml), *quick]
    code, screen = run_in(80, 24, command, tmp_path)
    text = "\n".join(screen.lines)
    assert code == 0, text
    assert any("─" in line and " of 6 trials" in line for line in screen.erased)
    assert any(re.match(r"\w{6}-00\d +\d+ of \d+ pairs", line) for line in screen.erased)
    # Only permanent lines may be wider than the window: trials that ended, and the results.
    prefix = records_of(tmp_path / "runs" / "sim")[0].id[:6]
    of_ended = rf"{prefix}-00\d (finished|stopped|failed) "
    assert _live_lines(screen.wrapped) == []
    assert re.search(of_ended, text)
    # A live line that wrapped would have left a part of itself behind.
    assert "──" not in text
    assert "pairs/s" not in text


@pytest.mark.slow
@pytest.mark.usefixtures("shared_ray")
def test_in_a_terminal_the_states_before_the_first_trial_are_shown(
    tmp_path: Path, yaml: Path
) -> None:
    one = ["--set", "trials=1", "--set", "data.limit=60", "--set", "trainer=trl",
           "--set", "eval_every_pairs=null"]  # fmt: skip
    command = [sys.executable, "-m", "tune", "run", str(yaml), *one]
    code, screen = run_in(120, 40, command, tmp_path)
    assert code == 0, "\n".join(screen.lines)
    drawn = "\n".join(screen.erased)
    for state in ("sim: checking model", "sim: reading the data", "connecting to the Ray cluster",
                  "starting the trials' processes", "reference log-probs "):  # fmt: skip
        assert state in drawn
    assert "sim: read as: " in "\n".join(screen.lines)
    assert _live_lines(screen.wrapped) == []


def _live_lines(lines: list[str]) -> list[str]:
    return [line for line in lines if "──" in line or " pairs/s" in line]


def test_stale_live_state_is_not_shown_as_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = LiveTrial(what="training", pairs_done=8, next_report=64, since=time.time())
    write_live(
        RunFolder.at(tmp_path),
        Live(at=time.time(), reference="reference 1 of 2", trials={"a": trial}),
    )
    assert describe_live(RunFolder.at(tmp_path)) == [
        "reference 1 of 2",
        "a: training, at 8 of 64 pairs; since 0 s",
    ]
    monkeypatch.setattr(live, "STALE_SECONDS", -1.0)
    assert describe_live(RunFolder.at(tmp_path)) == []
