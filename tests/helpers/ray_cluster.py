"""A Ray cluster of several nodes on this machine. `ray start` starts each at its own address."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT
from tests.helpers.network import Network
from tests.helpers.ports import wait_for_port

_PORT, _DASHBOARD = 6379, 8265


def working_folder(folder: Path) -> Path:
    """Copy the sources of a search into a working folder; a test may add files to send."""
    for package in ("dpo_train", "tune"):
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, folder / package, ignore=unwanted)
    return folder


class RayCluster:
    """A head without GPUs and nodes with logical GPUs. It ends only processes that it started.

    The nodes have no PYTHONPATH, so they see only those sources of the project that a job sends.
    """

    def __init__(self, network: Network, folder: Path, environment: dict[str, str]) -> None:
        self._network = network
        self._folder = folder
        # A socket's path has at most 107 characters, so this one is short.
        self._disks = Path(tempfile.mkdtemp(prefix="dt-"))
        self._nodes: dict[int, subprocess.Popen[bytes]] = {}
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("RAY_", "PYTEST_")) and name != "PYTHONPATH"
        }
        self._environment = {
            **inherited,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_enable_worker_prestart": "0",
            "RAY_prestart_worker_first_driver": "0",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_failure_threshold": "3",
            **environment,
        }

    def start_head(self, cpus: int = 2) -> None:
        """Start the head and wait for its dashboard."""
        self._start(0, "--head", f"--port={_PORT}", "--include-dashboard=true",
                    f"--dashboard-host={self._network.address(0)}", f"--num-cpus={cpus}",
                    f"--dashboard-port={_DASHBOARD}", "--num-gpus=0")  # fmt: skip
        log = self._folder / "node0.log"
        wait_for_port(self._network.address(0), _DASHBOARD, self._nodes[0], log)

    def start_node(self, number: int, cpus: int = 4, gpus: int = 4) -> None:
        """Start a node with logical GPUs."""
        self._start(number, f"--address={self._network.address(0)}:{_PORT}",
                    f"--num-cpus={cpus}", f"--num-gpus={gpus}")  # fmt: skip

    def kill(self, number: int) -> None:
        """Kill a node, as if its machine lost power."""
        launcher = self._nodes.pop(number)
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(launcher.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        launcher.kill()
        launcher.wait()

    def address(self, number: int) -> str:
        """Return the address of a node."""
        return self._network.address(number)

    def job(self, command: str, *arguments: object, seconds: float = 120) -> str:
        """Run `ray job …` outside the cluster and return its output."""
        done = subprocess.run(
            [Path(sys.executable).parent / "ray", "job", command, *map(str, arguments)],
            env={**os.environ, "RAY_API_SERVER_ADDRESS": self._url},
            capture_output=True, text=True, timeout=seconds, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def submit(self, job: str, folder: Path, *run: object) -> None:
        """Send the folder and start a search in it, without waiting for it."""
        stop = '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}'
        self.job("submit", "--no-wait", "--submission-id", job, "--runtime-env-json", stop,
                 "--working-dir", folder, "--", "python", "-m", "tune", "run", *run)  # fmt: skip

    def wait_until(self, holds: Callable[[], object], job: str) -> None:
        """Wait until `holds` is true while a job runs; the deadline suits slow machines."""
        deadline = time.monotonic() + 120
        while not holds():
            if time.monotonic() > deadline:
                pytest.fail(f"not in time; the job said:\n{self.job('logs', job)}")
            time.sleep(0.2)

    def follow(self, job: str) -> str:
        """Return the whole output of a job, which must succeed."""
        output = self.job("logs", "--follow", job, seconds=300)
        assert f"Job '{job}' succeeded" in output, output
        return output

    def close(self) -> None:
        """Kill all nodes and remove their disks."""
        for number in sorted(self._nodes, reverse=True):
            self.kill(number)
        shutil.rmtree(self._disks, ignore_errors=True)

    @property
    def _url(self) -> str:
        return f"http://{self._network.address(0)}:{_DASHBOARD}"

    def _start(self, number: int, *options: str) -> None:
        ray = str(Path(sys.executable).parent / "ray")
        disk = self._disks / str(number)
        disk.mkdir(exist_ok=True)
        command = [ray, "start", "--block", "--disable-usage-stats",
                   f"--node-ip-address={self._network.address(number)}",
                   f"--temp-dir={disk}", "--object-store-memory=80000000",
                   *options]  # fmt: skip
        with (self._folder / f"node{number}.log").open("w") as log:
            self._nodes[number] = subprocess.Popen(
                self._network.inside(number, command, disk),
                env={
                    **self._environment,
                    "HF_HOME": str(disk / "hf"),
                    "DPO_TUNE_CACHE": str(disk / "cache"),
                },
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
