"""A search survives the death of its processes, which are really killed.

Sessions are simulated where training is not the point. `make soak` runs longer versions.
"""

import errno
import os
import random
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dpo_train.errors import InputError
from dpo_train.storage.files import write_atomically
from tests.conftest import Run, Start
from tests.helpers.run_records import records_of, saved_pairs_of
from tests.helpers.simulated_search import (
    children,
    ended,
    hurry,
    trial_processes,
    wait_for_ended,
    wait_until,
)
from tune import load_results
from tune.cluster.connection import connected
from tune.config.schema import SearchConfig
from tune.errors import Interrupted
from tune.run_folder.paths import RunFolder
from tune.search.interruption import disk_failure_as_interruption

AT_LENGTH = [pytest.mark.soak, pytest.mark.timeout(600)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moments", "trials", "objective"),
    [
        (3, 9, "eval/accuracy"),
        pytest.param(10, 60, "eval/accuracy", marks=AT_LENGTH),
        pytest.param(10, 60, "[eval/accuracy, eval/drift]", marks=AT_LENGTH),
    ],
)
@pytest.mark.usefixtures("shared_ray")
def test_a_driver_killed_at_any_moment_loses_and_repeats_nothing(
    tmp_path: Path,
    yaml: Path,
    dpo_tune: Run,
    start: Start,
    moments: int,
    trials: int,
    objective: str,
) -> None:
    """The reports of each driver session take another time, which shows who trained them. After the
    first kill a saved state is damaged too, and its trial goes on from the state before."""
    run = tmp_path / "runs" / "sim"
    draw = random.Random(moments)
    command: tuple[object, ...] = ("run", yaml, "--set", f"trials={trials}", "--set",
                                   f"objective={objective}", "--set",
                                   "simulated.seconds_per_report=0.15")  # fmt: skip
    before: dict[str, Any] = {}
    output, damaged = "", ""
    for moment in range(moments):
        process = start(*command)
        wait_for_ended(run, len(before) + 1, process)
        if moment == 0:
            wait_until(lambda: twice_saved(run), process)
        time.sleep(draw.uniform(0, 0.4) if moment else 0)
        process.kill()
        output += process.communicate()[0]
        now = ended(run)
        assert {trial: now[trial] for trial in before} == before
        before = now
        saved = {record.id: max(saved_pairs_of(run, record.id), default=0)
                 for record in records_of(run)}  # fmt: skip
        if moment == 0:
            damaged = twice_saved(run)
            saved[damaged], newest = saved_pairs_of(run, damaged)
            state = run / "state" / damaged / str(newest) / "session" / "simulated.json"
            state.write_text(state.read_text().replace(str(newest), "999"))
        kept = {
            record.id: [r for r in record.curve if r["pairs_seen"] <= saved[record.id]]
            for record in records_of(run)
        }
        slower = f"seconds_per_report: {0.15 + (moment + 1) / 1000}"
        text = re.sub(r"seconds_per_report: .*", slower, (run / "search.yaml").read_text())
        write_atomically(run / "search.yaml", text)
        command = ("resume", run)
    hurry(run)
    done = dpo_tune("resume", run)
    assert done.returncode == 0, done.stderr
    assert re.search(f"{damaged}: its state at .* is damaged; it goes on from the one", output)
    after = ended(run)
    records = records_of(run)
    assert [record.id.split("-")[1] for record in records] == [f"{n:03d}" for n in range(trials)]
    assert len({record.id.split("-")[0] for record in records}) == 1
    assert len(after) == trials
    assert {trial: after[trial] for trial in before} == before
    for record in records:
        # The trials did not repeat what was saved when the last driver died.
        assert record.curve[: len(kept.get(record.id, []))] == kept.get(record.id, [])
        pairs = [point["pairs_seen"] for point in record.curve]
        assert pairs == sorted(set(pairs))
        if record.state == "finished":
            assert pairs == list(range(64, 513, 64))
    winner = load_results(run).winner
    assert winner is not None
    assert winner.eval["accuracy"] == max(r.metrics["eval/accuracy"] for r in records)


def twice_saved(run: Path) -> str:
    """Return a trial with two saved states on disk; an empty text if there is none."""
    return next(
        (r.id for r in records_of(run) if len(saved_pairs_of(run, r.id)) == 2),
        "",
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_answered_within_20_seconds_whatever_a_trial_is_at(
    tmp_path: Path, yaml: Path, start: Start, kind: signal.Signals
) -> None:
    process = start("run", yaml, "--set", "trials=2", "--set", "simulated.seconds_per_report=3600")
    wait_until(lambda: len(trial_processes(process.pid)) >= 2, process)
    time.sleep(1)
    process.send_signal(kind)
    began = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - began < 20
    assert process.returncode == 130, output
    assert f"interrupted; to go on: {sys.executable} -m tune resume" in output
    assert "Traceback" not in output
    records = records_of(tmp_path / "runs" / "sim")
    assert [record.state for record in records] == ["running"] * 2


@pytest.mark.slow
def test_when_rays_own_processes_end_the_search_ends_and_can_go_on(
    tmp_path: Path, yaml: Path, start: Start
) -> None:
    """The raylet ends when the dashboard's agent dies, and a driver would then wait for ever."""
    run = tmp_path / "runs" / "sim"
    process = start("run", yaml, "--set", "simulated.seconds_per_report=0.5", "--set", "trials=3")
    wait_until(lambda: any(record.curve for record in records_of(run)), process)
    (raylet,) = (pid for pid, command in children(process.pid) if "raylet/raylet" in command)
    agent = next(pid for pid, command in children(raylet) if "DashboardAgent" in command)
    before = ended(run)
    os.kill(agent, signal.SIGKILL)
    began = time.monotonic()
    output, _ = process.communicate(timeout=100)
    assert time.monotonic() - began < 60
    assert process.returncode == 130, output
    command = f"{sys.executable} -m tune resume"
    assert f"Ray's processes on this machine ended; to go on: {command}" in output
    assert not [r for r in records_of(run) if r.state == "failed"]
    assert {trial: ended(run)[trial] for trial in before} == before


@pytest.mark.parametrize("named", [None, "127.0.0.1:6379"])
def test_only_ray_address_names_a_cluster_to_search_on(
    monkeypatch: pytest.MonkeyPatch, named: str | None
) -> None:
    """Without an address Ray would look for one that `ray start` left behind, and wait for it."""
    addresses = []

    def init(address: str, **_: Any) -> None:
        addresses.append(address)
        raise ConnectionError

    monkeypatch.setattr("ray.init", init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if named:
        monkeypatch.setenv("RAY_ADDRESS", named)
    config = SearchConfig(name="x", trainer="simulated", trials=1)
    with pytest.raises((ConnectionError, InputError)) as raised, connected(config, "json"):
        pass
    assert ("RAY_ADDRESS: no Ray cluster answers" in str(raised.value)) == bool(named)
    assert addresses == [named or "local"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ESTALE, errno.EACCES])
def test_only_a_disk_that_failed_is_an_interruption(number: int) -> None:
    expected = PermissionError if number == errno.EACCES else Interrupted
    with pytest.raises(expected), disk_failure_as_interruption(RunFolder.at(Path("x"))):
        raise OSError(number, "no")


@pytest.mark.slow
# Ray's own test cluster keeps open handles of the processes that it killed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_trials_of_a_node_that_dies_go_on_elsewhere_without_loss(
    tmp_path: Path, yaml: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.cluster_utils import Cluster

    run = tmp_path / "runs" / "sim"
    head = {"num_cpus": 1, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        other = cluster.add_node(num_cpus=1)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        process = start(
            "run", yaml, "--set", "trials=2", "--set", "resources.cpus=1", "--set",
            "stopping.name=none", "--set", "simulated.seconds_per_report=1",
        )  # fmt: skip
        wait_until(
            lambda: [len(record.curve) >= 4 for record in records_of(run)] == [True] * 2,
            process,
        )
        cluster.remove_node(other, allow_graceful=False)
        output, _ = process.communicate(timeout=120)
    finally:
        cluster.shutdown()
    assert process.returncode == 0, output
    assert "its process died; it goes on in another" in output
    assert "Traceback" not in output
    records = records_of(run)
    assert [record.state for record in records] == ["finished"] * 2
    for record in records:
        assert [point["pairs_seen"] for point in record.curve] == list(range(64, 513, 64))
        # A trial has eight reports of a second, and one may not be saved yet: none started again.
        assert record.seconds < 11
