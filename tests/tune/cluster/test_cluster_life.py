"""Tests of minutes: a head that dies, and a search whose nodes each fetch the model."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dpo_train import sample
from tests.helpers.hub_server import HubServer
from tests.helpers.network import Network
from tests.helpers.placements import most_at_once, placements
from tests.helpers.ray_cluster import RayCluster, working_folder
from tests.helpers.simulated_search import ended, hurry
from tune.run_folder.results import load_results

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with Network(3) as network:
        yield network


def cluster_of(network: Network, folder: Path, **environment: str) -> RayCluster:
    folder.mkdir(exist_ok=True)
    access = {"RAY_AUTH_MODE": "disabled", "DPO_TUNE_RUNS": str(folder)}
    return RayCluster(network, folder.parent, {**access, **environment})


def test_after_the_heads_death_the_same_command_goes_on(tmp_path: Path, network: Network) -> None:
    run = tmp_path / "shared" / "sim"
    folder = working_folder(tmp_path / "mine")
    yaml = folder / "sim.yaml"
    text = (
        "trainer: simulated\ntrials: 8\nspace: {dpo.beta: {uniform: [0.1, 0.2]}}\n"
        "stopping: {name: none}\nsave_every_minutes: 0\nresources: {gpus: 1}\n"
        "simulated: {pairs: 256, seconds_per_report: SECONDS}\nwandb: {mode: disabled}\n"
    )
    yaml.write_text(text.replace("SECONDS", "2.0"))
    cluster = cluster_of(network, tmp_path / "shared")
    try:
        cluster.start_head()
        cluster.start_node(1, gpus=2)
        cluster.submit("sim", folder, yaml.name)
        cluster.wait_until(lambda: len(ended(run)) >= 4, "sim")
        cluster.close()
        before = ended(run)
        assert len(before) < 8
        cluster = cluster_of(network, tmp_path / "shared")
        cluster.start_head()
        cluster.start_node(1, gpus=2)
        hurry(run)
        yaml.write_text(text.replace("SECONDS", "0.0"))
        cluster.submit("sim", folder, yaml.name)
        cluster.follow("sim")
    finally:
        cluster.close()
    after = ended(run)
    assert len(after) == 8
    assert {trial: after[trial] for trial in before} == before
    for record in load_results(run).trials:
        assert [report["pairs_seen"] for report in record.curve] == [64, 128, 192, 256]


def test_each_node_fetches_the_model_once_and_a_late_one_gets_what_it_needs(
    tmp_path: Path, network: Network
) -> None:
    folder = working_folder(tmp_path / "mine")
    (folder / "pairs.jsonl").write_text("\n".join(sample.PAIRS.read_text().splitlines()[:120]))
    (folder / "real.yaml").write_text(
        "model: {id: acme/tiny}\ndata: {id: pairs.jsonl}\n"
        "optim: {learning_rate: 1e-4, epochs: 12}\nspace: {dpo.beta: {uniform: [0.1, 0.2]}}\n"
        "trials: 10\nstopping: {name: none}\n"
        "eval_every_pairs: 320\nwandb: {mode: disabled}\n"
    )
    with HubServer({"models/acme/tiny": sample.MODEL}, host=network.host) as hub:
        cluster = cluster_of(network, tmp_path / "shared", HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0",
                             HF_HUB_DISABLE_XET="1")  # fmt: skip
        run = tmp_path / "shared" / "real"
        try:
            cluster.start_head(cpus=0)
            cluster.start_node(1, cpus=2)
            cluster.submit("real", folder, "real.yaml")
            cluster.wait_until(lambda: placements(run), "real")
            cluster.start_node(2, cpus=1)
            cluster.follow("real")
        finally:
            cluster.close()
        fetched = [r for r in hub.requests if r.method == "GET" and "safetensors" in r.path]
    results = load_results(run)
    assert {each["node"] for each in placements(run)} == {network.address(1), network.address(2)}
    assert len(fetched) == 2
    assert results.cost.reference_pairs == sum(results.data["pairs"].values())
    assert results.winner is not None
    assert results.winner.test.metrics["accuracy"] > 0.5
    assert (run / "winner" / "model.safetensors").exists()


def test_a_trial_of_two_gpus_gets_two_of_one_node(tmp_path: Path, network: Network) -> None:
    folder = working_folder(tmp_path / "mine")
    (folder / "pairs.yaml").write_text(
        "trainer: simulated\ntrials: 6\nspace: {dpo.beta: {uniform: [0.1, 0.2]}}\n"
        "simulated: {seconds_per_report: 0.5}\nresources: {cpus: 0.5, gpus: 2}\n"
        "wandb: {mode: disabled}\n"
    )
    cluster = cluster_of(network, tmp_path / "shared")
    try:
        cluster.start_head()
        cluster.start_node(1, gpus=2)
        cluster.start_node(2, gpus=3)
        cluster.submit("pairs", folder, "pairs.yaml")
        cluster.follow("pairs")
    finally:
        cluster.close()
    run = tmp_path / "shared" / "pairs"
    taken = placements(run)
    assert {each["node"] for each in taken} == {network.address(1), network.address(2)}
    assert {len(set(each["gpus"].split(","))) for each in taken} == {2}
    assert set(most_at_once(run).values()) == {1}
