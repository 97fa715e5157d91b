"""What the real client of W&B writes of a search, on disk and to a server on loopback."""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Run, Start
from tests.helpers.simulated_search import ended, hurry, wait_for_ended, wait_until
from tests.helpers.wandb_runs import reports, wandb
from tests.helpers.wandb_server import WandbServer
from tune import load_results
from tune.run_folder.paths import RunFolder
from tune.run_folder.trial_record import TrialRecord
from tune.tracking.child_process import CLOSE_SECONDS
from tune.tracking.trackers import how_to_send

YAML = """
name: sim
trainer: simulated
eval_every_pairs: 64
trials: 4
space:
  optim.learning_rate: {log_uniform: [1e-5, 1e-2]}
  dpo.beta: {choice: [0.1, 0.3]}
points:
  - {optim.learning_rate: 8e-3, dpo.beta: 0.1}
  - {optim.learning_rate: 1e-3, dpo.beta: 0.3}
stopping: {name: none}
simulated: {diverges_above: 7e-3, noise: 0.1}
save_every_minutes: 0
resources: {cpus: 0.5}
wandb: {mode: offline, tags: [tried]}
"""


@pytest.fixture
def yaml(tmp_path: Path) -> Path:
    path = tmp_path / "sim.yaml"
    path.write_text(YAML)
    return path


def written(run: Path, run_id: str) -> dict[str, Any]:
    """Return the records in the client's file of a run, by type: all of `history`, or the last."""
    (file,) = (run / "wandb").glob(f"offline-run-*-{run_id}/*.wandb")
    found: dict[str, Any] = {"history": [], "summary": {}}
    for record in map(json.loads, wandb(run, "leet", "inspect", "--json", file).splitlines()):
        content = record.get(record["type"], {})
        if record["type"] == "history":
            found["history"].append(content["item"])
        elif record["type"] == "summary":
            found["summary"] |= content["update"]
        elif record["type"] in ("run", "exit"):
            found[record["type"]] = content
    return found


def assert_sent(record: TrialRecord, config: dict[str, Any], summary: dict[str, Any]) -> None:
    assert record.config.items() <= config.items()
    assert config["simulated.noise"] == 0.1
    assert not config.keys() & {"runs_dir", "name", "wandb.mode"}
    assert summary["state"] == record.state
    assert summary["pairs_seen"] == record.pairs_seen
    best = {name: value for name, value in record.metrics.items() if name.startswith("eval/")}
    assert best.items() <= summary.items()
    assert summary.get("error") == record.error


@pytest.mark.slow
@pytest.mark.usefixtures("shared_ray")
def test_on_disk_lies_what_the_records_say(
    tmp_path: Path, yaml: Path, dpo_tune: Run, server: WandbServer
) -> None:
    done = dpo_tune("run", yaml, "--set", "trials=3")
    assert done.returncode == 0, done.stderr
    command = f"{Path(sys.executable).parent / 'wandb'} sync --yes runs/sim/wandb"
    assert f"W&B: 4 runs wait on disk; to send: {command}\n" in done.stdout
    assert server.calls.total() == 0
    run = tmp_path / "runs" / "sim"
    results = load_results(run)
    assert {trial.state for trial in results.trials} == {"finished", "failed"}
    for trial in results.trials:
        found = written(run, trial.id)
        assert found["run"]["run_group"] == "sim"
        assert found["run"]["tags"] == ["tried"]
        assert "host" not in found["run"]
        assert_sent(trial, found["run"]["config"]["update"], found["summary"])
        assert reports(found["history"]) == trial.curve
        assert found["exit"].get("exit_code", 0) == (trial.state == "failed")
    wandb(run, "sync", "--yes", run / "wandb")
    assert len(server.runs) == 4
    assert how_to_send(RunFolder.at(run)) == ""
    files = server.runs[f"{results.trials[0].id[:6]}-search"].files
    (table,) = [content for name, content in files.items() if name.startswith("media/table/")]
    assert sorted(row[0] for row in json.loads(table)["data"]) == [t.id for t in results.trials]


@pytest.mark.slow
@pytest.mark.usefixtures("shared_ray")
def test_an_interrupted_search_goes_on_in_the_same_sweep_and_runs(
    tmp_path: Path, yaml: Path, dpo_tune: Run, start: Start, server: WandbServer
) -> None:
    run = tmp_path / "runs" / "sim"
    slowly = ("--set", "simulated.seconds_per_report=6", "--set", "wandb.mode=online")
    process = start("run", yaml, *slowly)

    def is_followed() -> bool:
        return any(run.state == "running" and run.history for run in [*server.runs.values()])

    wait_until(is_followed, process)
    wait_for_ended(run, 1, process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert len(ended(run)) < 4
    states = {run.state for run in server.runs.values()}
    assert states <= {"finished", "failed", "preempted"}
    assert "preempted" in states
    before = {run_id: len(run.history) for run_id, run in server.runs.items()}
    hurry(run)

    done = dpo_tune("resume", run)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    assert "wandb sync" not in done.stdout
    (made,) = server.sweeps.values()
    assert made.state == "FINISHED"
    results = load_results(run)
    for trial in results.trials:
        shown = server.runs.pop(trial.id)
        assert shown.sent["sweep"] == made.name
        assert (shown.sent["groupName"], shown.sent["tags"]) == ("sim", ["tried"])
        assert (shown.sent["project"], shown.sent["jobType"]) == ("dpo-tune", "trial")
        assert_sent(trial, shown.config, shown.summary)
        assert reports(shown.rows) == trial.curve
        assert len(shown.rows) >= before.get(trial.id, 0)
        assert shown.state == trial.state
        assert shown.exit_code == (trial.state == "failed")
    (search,) = server.runs.values()
    assert search.sent["jobType"] == "search"
    assert "sweep" not in search.sent
    assert search.summary["winner"] == results.winner.trial
    assert server.calls["UpsertSweep"] == 2  # made once, ended once
    sent = "".join(server.bodies)
    assert server.key not in sent
    # The client itself sends the folder in which it stages an artifact's file.
    staged = re.escape(str(tmp_path / "home" / "artifacts" / "staging"))
    assert str(tmp_path) not in re.sub(rf'"local_path":"{staged}/\w+"', "", sent)
    assert f'"{os.uname().nodename}"' not in sent
    assert not [p for p in run.rglob("*") if p.is_file() and server.key.encode() in p.read_bytes()]


@pytest.mark.slow
@pytest.mark.usefixtures("shared_ray")
def test_a_server_that_hangs_costs_seconds_at_the_end_and_the_rest_can_be_sent(
    tmp_path: Path, yaml: Path, start: Start, server: WandbServer
) -> None:
    run = tmp_path / "runs" / "sim"
    slowly = ("--set", "simulated.seconds_per_report=1", "--set", "wandb.mode=online")
    process = start("run", yaml, *slowly)
    wait_until(lambda: any("state" in shown.summary for shown in [*server.runs.values()]), process)
    server.ill = "hang"
    wait_for_ended(run, 4, process)
    began = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - began < CLOSE_SECONDS + 25  # ending Ray takes some of it
    assert process.returncode == 0, output
    results = load_results(run)
    assert results.winner is not None
    assert "wandb sync --yes runs/sim/wandb\n" in output
    server.ill = ""
    wandb(run, "sync", "--yes", run / "wandb")
    for trial in results.trials:
        shown = server.runs[trial.id]
        assert_sent(trial, shown.config, shown.summary)
        assert reports(shown.rows) == trial.curve
        assert shown.state == trial.state
