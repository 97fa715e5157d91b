"""Fixtures that many tests share. Each process gets one torch thread, for machines of two cores."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
# Kernels for GPUs are run by Triton's interpreter, which is chosen when Triton is imported.
os.environ["TRITON_INTERPRET"] = "1"

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dpo_train import data, reference
from dpo_train.config import DataConfig, TrainConfig
from tests.helpers.object_store import LOGIN
from tests.helpers.one_node import one_node
from tests.helpers.simulated_search import YAML
from tests.helpers.wandb_server import WandbServer

ROOT = Path(__file__).parent.parent
Run = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., subprocess.Popen[str]]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests that only `make soak` runs."""
    if "soak" in (config.getoption("-m") or ""):
        return

    items[:] = [item for item in items if not item.get_closest_marker("soak")]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if "soak" not in (terminalreporter.config.getoption("-m") or ""):
        terminalreporter.write_line(
            "not run here: `make soak` kills a driver at ten moments instead of three, and lets "
            "Ray's memory monitor end processes; `make cluster-test` runs on nodes and object "
            "stores that die, and serves a winner; benchmarks/ measures speed and search quality, "
            "and kills the processes of 200 trials"
        )


@pytest.fixture
def dpo_tune(tmp_path: Path) -> Run:
    """Run the command line in an empty folder and capture what it prints."""

    def run(*arguments: object, timeout: float = 200) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tune", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the command line in an empty folder. What a failed test leaves running is ended."""
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "tune", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.terminate()
            try:
                process.communicate(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    environment = {
        # For runs on an object store its processes have their own login and mirror.
        **LOGIN,
        "DPO_TUNE_CACHE": str(tmp_path_factory.mktemp("node")),
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "disabled",
        # A search sets these two for its own Ray as well.
        "RAY_enable_worker_prestart": "0",
        "RAY_prestart_worker_first_driver": "0",
    }
    with one_node(2, "--include-dashboard=false", **environment) as address:
        yield address


@pytest.fixture
def shared_ray(ray_cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let searches run on an existing cluster of two CPUs. With a Ray of its own a short search
    would spend half of its time on starting and ending it."""
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


@pytest.fixture(scope="session")
def small_config() -> TrainConfig:
    """The sample model on 60 of the sample's pairs: 40 train, 10 eval, 10 test."""
    data_config = DataConfig(limit=60)
    return TrainConfig(data=data_config, eval_every_pairs=16)


@pytest.fixture(scope="session")
def small_prepared(small_config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the prepared data of `small_config`."""
    root = tmp_path_factory.mktemp("prepared")
    folder = reference.plan(small_config, data.load_pairs(small_config.data), root, "cpu")
    reference.prepare(folder)
    return folder


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A W&B server that this process and its children are logged in to."""
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))
    # Another command may have left this variable behind. With it the client would drop our ids.
    monkeypatch.setenv("WANDB_SWEEP_ID", "foreign")
    with WandbServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", server.key)
        yield server


@pytest.fixture
def yaml(tmp_path: Path) -> Path:
    path = tmp_path / "sim.yaml"
    path.write_text(YAML)
    return path
