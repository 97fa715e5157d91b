"""Actors of a real Ray, whose GPUs are only numbers, hold a broken GPU back."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from tests.conftest import ROOT
from tests.helpers.one_node import one_node
from tests.helpers.placements import placements
from tests.helpers.run_records import records_of
from tune.run_folder.step import Device
from tune.search import broken_gpus

SAID = "CUDA error: device-side assert triggered"


@pytest.fixture(scope="module")
def node() -> Iterator[str]:
    """Start a Ray for this module with two GPUs that don't exist."""
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    os.environ["PYTHONPATH"] = str(ROOT)
    ray.init("local", num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False,
             logging_level="ERROR")  # fmt: skip
    yield ray.get_runtime_context().get_node_id()
    ray.shutdown()
    del os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"], os.environ["PYTHONPATH"]


def free_gpus() -> float:
    return ray.available_resources().get("GPU", 0.0)


def await_free(gpus: float, look: Any = None) -> None:
    deadline = time.monotonic() + 60
    while free_gpus() != gpus:
        assert time.monotonic() < deadline, f"{free_gpus()} GPUs are free, not {gpus}"
        if look:
            look()
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("gpu", "share"), [("0", 1.0), ("1", 1.0), ("1", 0.5)])
def test_one_gpu_is_held_whole_and_the_others_are_let_go(node: str, gpu: str, share: float) -> None:
    address = ray.util.get_node_ip_address()
    hold = broken_gpus._Hold(Device(node, address, gpu), share)
    hold.update()
    deadline = time.monotonic() + 60
    while not (len(hold._here) == hold._slots and not hold._elsewhere):
        assert time.monotonic() < deadline
        hold.update()
        time.sleep(0.1)
    await_free(1.0, hold.update)

    def seen() -> str:
        return os.environ["CUDA_VISIBLE_DEVICES"]

    assert ray.get(ray.remote(seen).options(num_gpus=1).remote()) == {"0": "1", "1": "0"}[gpu]
    hold.close()
    await_free(2.0)


DOUBLE = """
import os, sys, time, types
if not any("default_worker" in word for word in sys.orig_argv):
    from tune.config.schema import SearchConfig
    SearchConfig.device = property(lambda self: "cpu")  # its GPUs don't exist
else:
    def use():
        if os.environ.get("CUDA_VISIBLE_DEVICES") in {broken}:
            open("{marks}/" + str(os.getpid()), "w").close()
            torch = types.ModuleType("torch")  # the real one takes seconds to import
            torch.AcceleratorError = torch.OutOfMemoryError = type("Error", (RuntimeError,), {{}})
            sys.modules.setdefault("torch", torch)
            raise RuntimeError("CUDA error: device-side assert triggered")
        while len(os.listdir("{marks}")) < 3:  # else the good GPU may do all before
            time.sleep(0.1)
"""
IN_THE_TRIALS_PROCESS = """
    from dpo_train.trainers.simulated import SimulatedSession
    own = SimulatedSession.advance_for
    def advance_for(self, seconds):
        use()
        return own(self, seconds)
    SimulatedSession.advance_for = advance_for
"""
IN_ITS_ENGINE = """
    from tune.workers import engine_actor
    own = engine_actor._one_thread
    def one_thread():
        use()
        own()
    engine_actor._one_thread = one_thread
"""

YAML = """
name: x
optim: {batch_size: 8}
space: {optim.learning_rate: {log_uniform: [1e-4, 1e-3]}}
trials: 6
stopping: {name: none}
save_every_minutes: 0
budget: {failures_in_a_row: 1}
wandb: {mode: disabled}
"""
SIMULATED = """
trainer: simulated
eval_every_pairs: 128
simulated: {pairs: 256}
"""
PACKED = """
trainer: packed
lora: {r: 4}
data: {limit: 60}
model: {dtype: float32}
"""


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start a cluster with two GPUs that don't exist; the doubles in `tmp_path` break them."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    environment = {
        "PYTHONPATH": f"{tmp_path}:{ROOT}",
        "RAY_enable_worker_prestart": "0",
        "RAY_prestart_worker_first_driver": "0",
    }
    options = ("--include-dashboard=false", "--num-gpus=2")
    with one_node(4, *options, **environment) as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        yield


def write_double(folder: Path, where: str, broken: list[str]) -> None:
    marks = folder / "marks"
    marks.mkdir()
    double = DOUBLE.format(broken=broken, marks=marks) + where
    (folder / "sitecustomize.py").write_text(double)


def run_search(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tune", "run", "x.yaml"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("content", "gpus", "double"),
    [
        (SIMULATED, 1, IN_THE_TRIALS_PROCESS),
        (SIMULATED, 0.5, IN_THE_TRIALS_PROCESS),
        (PACKED, 0.5, IN_ITS_ENGINE),
    ],
    ids=["whole", "halves", "packed-halves"],
)
@pytest.mark.usefixtures("two_gpus")
def test_a_search_finishes_on_the_gpu_that_works(
    tmp_path: Path, content: str, gpus: float, double: str
) -> None:
    write_double(tmp_path, double, ["0"])
    (tmp_path / "x.yaml").write_text(YAML + content + f"resources: {{cpus: 0.5, gpus: {gpus}}}\n")
    done = run_search(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    pattern = " warning: GPU (.) of .* failed 3 times in a row"
    assert re.findall(pattern, done.stdout, re.MULTILINE) == ["0"], done.stdout
    assert "GPU 1" not in done.stdout
    run = tmp_path / "runs" / "x"
    assert [record.state for record in records_of(run)] == ["finished"] * 6
    assert {each["gpus"] for each in placements(run)} == {"1"}


@pytest.mark.slow
@pytest.mark.usefixtures("two_gpus")
def test_a_search_whose_gpus_all_fail_is_interrupted(tmp_path: Path) -> None:
    write_double(tmp_path, IN_THE_TRIALS_PROCESS, ["0", "1"])
    (tmp_path / "x.yaml").write_text(YAML + SIMULATED + "resources: {gpus: 1}\n")
    done = run_search(tmp_path)
    assert done.returncode == 130, done.stdout + done.stderr
    assert "no GPU is left for a trial: GPU" in done.stderr
    assert re.search(r"device-side assert triggered\); to go on: .* resume", done.stderr)
