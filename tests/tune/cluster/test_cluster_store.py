"""A cluster without a shared folder: each node has its own disk, and all share a bucket."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dpo_train.storage import mirror
from tests.conftest import Run
from tests.helpers.network import Network
from tests.helpers.object_store import LOGIN, ObjectStore
from tests.helpers.ray_cluster import RayCluster, working_folder
from tune.run_folder.results import load_results
from tune.run_folder.trial_record import ENDED

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

YAML = """
name: real
data: {limit: 120}
optim: {learning_rate: 1e-3, epochs: 8}
space: {dpo.beta: {uniform: [0.1, 0.2]}}
trials: 8
stopping: {name: none}
eval_every_pairs: 160
save_every_minutes: 0
wandb: {mode: disabled}
"""


@pytest.fixture(autouse=True)
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the login and the mirror of this process; the nodes have their own."""
    for name, value in LOGIN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DPO_TUNE_CACHE", str(tmp_path / "disk"))


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with Network(4) as network:
        if not network.isolated:
            pytest.skip("no network namespaces: the nodes would share a disk")
        yield network


def test_the_head_and_a_worker_die_with_their_disks_and_late_nodes_get_what_they_need(
    tmp_path: Path, network: Network
) -> None:
    folder = working_folder(tmp_path / "mine")
    (folder / "real.yaml").write_text(YAML)
    with ObjectStore(tmp_path, network.host) as store:

        def cluster() -> RayCluster:
            access = {"RAY_AUTH_MODE": "disabled", "DPO_TUNE_RUNS": store.url, **LOGIN}
            return RayCluster(network, tmp_path, access)

        def ended() -> dict[str, Any]:
            records = store.records("real").items()
            return {key: record for key, record in records if record["state"] in ENDED}

        def places() -> list[dict[str, Any]]:
            text = store.read("real/places.jsonl").get("real/places.jsonl", b"")
            return [json.loads(line) for line in text.splitlines()]

        nodes = cluster()
        try:
            nodes.start_head(cpus=0)
            nodes.start_node(1, cpus=1)
            nodes.submit("real", folder, "real.yaml")
            nodes.wait_until(lambda: len(ended()) >= 2, "real")
            nodes.close()
            before = ended()

            nodes = cluster()
            nodes.start_head(cpus=0)
            nodes.start_node(1, cpus=1)
            nodes.submit("real", folder, "real.yaml")
            nodes.wait_until(lambda: len(ended()) > len(before), "real")
            nodes.start_node(2, cpus=1)
            nodes.wait_until(lambda: nodes.address(2) in {p["node"] for p in places()}, "real")
            nodes.kill(1)
            nodes.start_node(3, cpus=1)
            output = nodes.follow("real")
        finally:
            nodes.close()
        after, stored = ended(), store.read()
        results = load_results(store.run("real"))
        taken = places()
        test = mirror.pull(results.folder.winner)
    assert len(after) == 8
    assert len(before) < 8
    assert {key: after[key] for key in before} == before
    assert "its process died; it goes on in another" in output
    assert {each["node"] for each in taken} >= {nodes.address(node) for node in (1, 2)}
    for record in after.values():
        assert record["state"] == "finished"
        pairs = [report["pairs_seen"] for report in record["curve"]]
        assert pairs == sorted(set(pairs))
        assert len(pairs) == len(next(iter(after.values()))["curve"])
    # Each node reads what the first computed.
    assert results.cost.reference_pairs == sum(results.data["pairs"].values())
    assert results.winner is not None
    assert results.winner.test.metrics["accuracy"] > 0.5
    assert (test / "model.safetensors").read_bytes() == stored["real/winner/model.safetensors"]
    assert not [path for path in stored if path.startswith("real/state/")]


@pytest.mark.parametrize("trainer", ["trl", "packed"])
def test_a_real_search_runs_from_start_to_winner_on_a_url(
    trainer: str, tmp_path: Path, dpo_tune: Run
) -> None:
    yaml = tmp_path / "real.yaml"
    yaml.write_text(f"trainer: {trainer}\nlora: {{r: 4, alpha: 8}}\nconfirm: {{}}\n{YAML}")
    with ObjectStore(tmp_path) as store:
        options = ("--set", f"runs_dir={store.url}", "--set", "trials=3")
        done = dpo_tune("run", yaml, *options)
        assert done.returncode == 0, done.stdout + done.stderr
        again = dpo_tune("resume", store.run("real"), "--trials", "+1")
        assert again.returncode == 0, again.stdout + again.stderr
        stored = store.read()
        results = load_results(store.run("real"))
        written = dpo_tune("push", store.run("real"), "--to", tmp_path / "hub", "--merged",
                           "--license", "apache-2.0")  # fmt: skip
        assert written.returncode == 0, written.stdout + written.stderr
    assert (tmp_path / "hub" / "model.safetensors").exists()
    assert results.confirmation is not None
    assert results.winner is not None
    assert results.cost.reference_pairs == sum(results.data["pairs"].values())
    assert "real/winner/adapter_model.safetensors" in stored
    assert {record.state for record in results.runs} == {"finished"}
    assert len(results.trials) == 4
