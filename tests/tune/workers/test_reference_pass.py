"""The reference pass is shared out over the devices of a search, and goes on after a kill."""

import signal
from pathlib import Path

import psutil
import pytest

from tests.conftest import Start
from tests.helpers.run_records import records_of
from tests.helpers.simulated_search import wait_until

pytestmark = pytest.mark.slow

YAML = """
name: pass
trainer: trl
lora: {r: 4, alpha: 8}
optim: {learning_rate: 1e-4, batch_size: 16}
space: {dpo.beta: {log_uniform: [0.05, 0.5]}}
trials: 2
stopping: {name: none}
eval_every_pairs: 640
wandb: {mode: disabled}
"""
PAIRS = 962


def reference_pairs(run: Path) -> list[int]:
    return [record.reference_pairs for record in records_of(run)]


# Ray's own test cluster keeps open handles of the processes that it killed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_both_nodes_of_a_cluster_compute_and_no_pair_twice(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.cluster_utils import Cluster

    (tmp_path / "pass.yaml").write_text(YAML)
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    try:
        cluster.add_node(num_cpus=1)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        process = start("run", "pass.yaml")
        output, _ = process.communicate(timeout=200)
    finally:
        cluster.shutdown()
    assert process.returncode == 0, output
    computed = reference_pairs(tmp_path / "runs" / "pass")
    assert all(computed), computed
    assert sum(computed) == PAIRS


def test_a_pass_killed_in_its_middle_goes_on_from_its_shards(tmp_path: Path, start: Start) -> None:
    (tmp_path / "pass.yaml").write_text(YAML.replace("trials: 2", "trials: 1"))
    prepared = tmp_path / "runs" / ".prepared"

    def shards() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in prepared.glob("*/shards/*.json")}

    process = start("run", "pass.yaml")
    wait_until(lambda: len(shards()) >= 3, process)
    driver = psutil.Process(process.pid)
    for each in [*driver.children(recursive=True), driver]:
        each.send_signal(signal.SIGKILL)
    process.communicate()
    before = shards()
    assert before  # the pass was half done
    assert not list(prepared.glob("*/manifest.json"))
    process = start("resume", "pass")
    wait_until(
        lambda: list(prepared.glob("*/manifest.json")) or len(shards()) > len(before), process
    )
    kept = shards()
    assert not kept or all(kept[name] == written for name, written in before.items())
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert 0 < sum(reference_pairs(tmp_path / "runs" / "pass")) < PAIRS
