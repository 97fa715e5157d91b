"""`ray up` runs cluster.yaml with the block for your own machines: SSH to network namespaces."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.helpers import cluster_yaml
from tests.helpers.network import Network
from tests.helpers.placements import placements
from tests.helpers.ports import free_port, wait_for_port
from tests.helpers.ray_cluster import working_folder
from tests.helpers.ssh_nodes import SshNodes, missing_tools
from tune.run_folder.results import load_results

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(500),
    pytest.mark.skipif(bool(missing_tools()), reason=f"not here: {', '.join(missing_tools())}"),
]


@pytest.fixture
def network() -> Iterator[Network]:
    with Network(3) as network:
        if not network.isolated:
            pytest.skip("network namespaces are not allowed here")
        yield network


def test_the_cluster_comes_up_runs_a_search_and_goes_down(
    tmp_path: Path, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    nodes = SshNodes(network, tmp_path, shared)
    config = cluster_yaml.on("Your own machines by SSH")
    config["provider"] |= {
        "head_ip": network.address(0),
        "worker_ips": [network.address(1), network.address(2)],
    }
    config["auth"] = {"ssh_user": "root", "ssh_private_key": str(nodes.key)}
    # Everything is installed on this machine already, and the namespaces reach no registry.
    config["setup_commands"] = config["initialization_commands"] = []
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", nodes.path)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_UP_enable_autoscaler_v2", "0")

    def ray(*words: str) -> str:
        done = subprocess.run(
            [Path(sys.executable).parent / "ray", *words], cwd=ROOT, capture_output=True,
            text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    ray("get-auth-token", "--generate")
    try:
        for node in range(3):
            nodes.start(node)
        ray("up", "-y", "--no-config-cache", str(tmp_path / "cluster.yaml"))
        with _tunnel(tmp_path) as url:
            folder = working_folder(tmp_path / "mine")
            (folder / "sim.yaml").write_text(
                "trainer: simulated\neval_every_pairs: 64\ntrials: 12\n"
                "space: {dpo.beta: {uniform: [0.1, 0.2]}}\n"
                "simulated: {seconds_per_report: 3}\nresources: {cpus: 1, at_once: 6}\n"
                "wandb: {mode: disabled}\n"
            )
            ray("job", "submit", "--address", url, "--working-dir", str(folder),
                "--", "python", "-m", "tune", "run", "sim.yaml")  # fmt: skip
        assert load_results(shared / "runs" / "sim").winner is not None
        used = {each["node"] for each in placements(shared / "runs" / "sim")}
        assert used >= {network.address(1), network.address(2)}
        ray("down", "-y", str(tmp_path / "cluster.yaml"))
    finally:
        nodes.close()


@contextlib.contextmanager
def _tunnel(folder: Path) -> Iterator[str]:
    """Run `ray dashboard` while it is needed, on a port of this machine."""
    port, log = free_port(), folder / "tunnel.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [Path(sys.executable).parent / "ray", "dashboard", "-p", str(port),
             str(folder / "cluster.yaml")],
            cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        wait_for_port("127.0.0.1", port, process, log, 60)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
