"""What a person reads while a search runs, and that a stop does not wait for an evaluation."""

import time
from pathlib import Path

import pytest

from tests.conftest import Run, Start
from tests.helpers.run_records import records_of
from tests.helpers.simulated_search import wait_until
from tune.run_folder import live
from tune.run_folder.live import Live, LiveTrial, describe_live, write_live
from tune.run_folder.paths import RunFolder
from tune.search import signs_of_life
from tune.search.signs_of_life import SignsOfLife

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
    said = dpo_tune("show", "sim").stdout
    assert "no trial has reported yet" in said
    assert "at work now:" in said
    first, second = records_of(run)
    for record in (first, second):
        assert f"  {record.id}: training, at " in said
        assert " of 64 pairs; since " in said
    assert dpo_tune("stop", "sim", first.id).returncode == 0
    wait_until(lambda: _state(run, first.id) == "stopped", process)
    assert _state(run, second.id) == "running"
    assert dpo_tune("stop", "sim", second.id).returncode == 0
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output  # nothing was measured, so nothing was won
    assert all(record.error == "on request" for record in records_of(run))
    assert output.splitlines()[0] == "sim: looking at model, data and outputs"
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
        signs.follow(lambda: "3 of 8 trials")
        time.sleep(1)
    lines = capsys.readouterr().out.splitlines()
    assert lines.count("starting Ray") >= 2
    assert lines.count("3 of 8 trials") >= 2


def test_what_an_earlier_driver_wrote_is_not_at_work(
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
