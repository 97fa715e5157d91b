"""A search as a Ray job on three nodes: it is sent, loses a node, is stopped and finishes.

The nodes have addresses and disks of their own, logical GPUs, and one shared folder.
"""

import json
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.helpers.network import Network
from tests.helpers.placements import most_at_once, placements
from tests.helpers.ray_cluster import RayCluster, working_folder
from tests.helpers.run_records import records_of
from tests.helpers.simulated_search import hurry
from tune.run_folder.results import load_results
from tune.run_folder.trial_record import TrialRecord

pytestmark = pytest.mark.slow

SIMULATED = (
    "trainer=simulated", "eval_every_pairs=128", "stopping.name=none", "save_every_minutes=0",
    "wandb.mode=disabled", "resources.gpus=1", "trials=12",
)  # fmt: skip
SECONDS = 3.0
"""Seconds of one report: so slow that even a slow machine sees the search half done."""


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """Return the one folder that all nodes see."""
    folder = tmp_path / "shared"
    folder.mkdir()
    return folder


@pytest.fixture
def cluster(tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RayCluster]:
    """Start a cluster with a head that answers and asks for a token."""
    token = tmp_path / "token"
    token.write_text(secrets.token_hex(32))
    access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    for name, value in access.items():
        monkeypatch.setenv(name, value)
    with Network(4) as network:
        cluster = RayCluster(network, tmp_path, {**access, "DPO_TUNE_RUNS": str(shared)})
        try:
            cluster.start_head()
            yield cluster
        finally:
            cluster.close()


def submit(cluster: RayCluster, job: str, *values: str) -> None:
    """Submit a job as the README says, from this repository as it is."""
    settings = [word for value in values for word in ("--set", value)]
    cluster.submit(job, ROOT, "searches/quickstart.yaml", *settings)


def test_a_job_survives_a_node_and_a_stop_and_holds_each_gpu_once(
    shared: Path, cluster: RayCluster
) -> None:
    run = shared / "quickstart"
    cluster.start_node(1, gpus=2)
    cluster.start_node(2, gpus=2)
    submit(cluster, "first", *SIMULATED, f"simulated.seconds_per_report={SECONDS}")
    cluster.wait_until(lambda: len({each["node"] for each in placements(run)}) == 2, "first")
    cluster.wait_until(lambda: _reports(run) >= 5, "first")
    cluster.kill(2)
    cluster.start_node(3, gpus=2)
    cluster.wait_until(
        lambda: cluster.address(3) in {each["node"] for each in placements(run)}, "first"
    )
    cluster.job("stop", "first")
    output = cluster.job("logs", "first")
    assert re.search(r"interrupted; to go on: .* resume ", output)
    assert "its process died; it goes on in another" in output
    assert "Traceback" not in output
    assert any(record.state in ("running", "pending") for record in records_of(run))

    hurry(run)
    submit(cluster, "second", *SIMULATED, "simulated.seconds_per_report=0.0")
    cluster.wait_until((run / "results.json").exists, "second")
    records = records_of(run)
    assert [record.state for record in records] == ["finished"] * 12
    for record in records:
        pairs = [report["pairs_seen"] for report in record.curve]
        assert pairs == list(range(128, int(pairs[-1]) + 1, 128))
    assert {gpus for _, gpus in most_at_once(run)} == {"0", "1"}
    assert set(most_at_once(run).values()) == {1}
    nodes = {record.id: _nodes(run, record) for record in records}
    moved = [record for record in records if cluster.address(2) in nodes[record.id][:-1]]
    assert moved
    for record in moved:
        # Each interruption costs a trial at most the report that was not yet saved.
        again = record.seconds - sum(report["train_seconds"] for report in record.curve)
        assert again < SECONDS * (len(nodes[record.id]) - 0.5)


@pytest.mark.cluster
def test_a_job_is_followed_runs_what_it_brought_and_has_the_variables_it_was_given(
    tmp_path: Path, shared: Path, cluster: RayCluster
) -> None:
    cluster.start_node(1, gpus=1)
    cluster.start_node(2, gpus=1)
    folder = working_folder(tmp_path / "mine")
    (folder / "halves.yaml").write_text(
        "trainer: simulated\neval_every_pairs: 64\ntrials: 12\n"
        "space: {dpo.beta: {uniform: [0.1, 0.2]}}\n"
        "simulated: {seconds_per_report: 0.2}\nresources: {cpus: 0.5, gpus: 0.5}\n"
        "wandb: {mode: disabled}\n"
    )
    variables = {"env_vars": {"DPO_TUNE_RUNS": str(shared / "elsewhere")}}
    output = cluster.job("submit", "--runtime-env-json", json.dumps(variables), "--working-dir",
                       folder, "--", "python", "-m", "tune", "run", "halves.yaml")  # fmt: skip
    run = shared / "elsewhere" / "halves"
    winner = load_results(run).winner
    assert winner is not None
    assert f"winner {winner.trial}" in output
    assert set(most_at_once(run).values()) == {2}


def _reports(run: Path) -> int:
    return sum(len(record.curve) for record in records_of(run))


def _nodes(run: Path, record: TrialRecord) -> list[str]:
    return [each["node"] for each in placements(run) if each["trial"] == record.id]
