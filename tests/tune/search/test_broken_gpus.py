"""GPUs that fail again and again: how they are told from trials that fail, and what is done."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import RayTaskError
from ray.tune import PlacementGroupFactory

from dpo_train.errors import DeviceFailed
from tests.conftest import ROOT
from tests.helpers.driver import Driver, result_of
from tests.helpers.one_node import one_node
from tests.helpers.placements import places
from tests.helpers.run_records import records_of
from tune.errors import GpuFailed, SearchAborted
from tune.run_folder.step import Device, Step
from tune.search import broken_gpus
from tune.search.broken_gpus import BrokenGpus
from tune.search.signs_of_life import SignsOfLife

SAID = "CUDA error: device-side assert triggered"


class Played:
    """Counts failures on a node with some GPUs, and holds none of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, gpus: int = 2, **trial: float) -> None:
        node = {"NodeID": "n", "Alive": True, "Resources": {"GPU": float(gpus)}}
        monkeypatch.setattr(ray, "nodes", lambda: [node])
        monkeypatch.setattr(broken_gpus, "_Hold", lambda *_: SimpleNamespace(begin_again=str))
        wanted = PlacementGroupFactory([{"CPU": 1.0, "GPU": 1.0, **trial}])
        self.gpus = BrokenGpus(wanted, SignsOfLife())
        self.failures: dict[str, Any] = {}
        self._process = 0

    def fail(self, *trials: str, gpu: str = "0") -> list[bool]:
        """The trials of one process fail together; whether the GPU is to blame for each."""
        self._process += 1
        failure = GpuFailed("n", "10.0.0.5", gpu, SAID, self._process)
        blamed = []
        for trial in trials:
            metadata = self.failures.setdefault(trial, SimpleNamespace(num_failures=0))
            metadata.num_failures += 1  # as Tune does before it tells anybody
            blamed.append(self.gpus.take(trial, metadata, failure))
        return blamed

    @property
    def counted(self) -> dict[str, int]:
        return {trial: metadata.num_failures for trial, metadata in self.failures.items()}


def test_three_failures_in_a_row_under_two_trials_are_the_gpus(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    played = Played(monkeypatch)
    assert [played.fail("a"), played.fail("b"), played.fail("a")] == [[False], [False], [True]]
    assert played.counted == {"a": 0, "b": 0}
    (line,) = capsys.readouterr().out.splitlines()
    assert f" warning: GPU 0 of 10.0.0.5 failed 3 times in a row ({SAID}); it is" in line
    assert (played.gpus.count, played.gpus.none_left) == (1, "")
    assert played.fail("c") == [True]  # it was placed there before the GPU was held
    assert played.counted["c"] == 0
    assert capsys.readouterr().out == ""


def test_a_report_from_a_gpu_sets_its_count_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    played = Played(monkeypatch)
    played.fail("a")
    played.fail("b")
    played.gpus.works((Device("n", "10.0.0.5", "1"),))  # another one
    played.gpus.works((Device("n", "10.0.0.5", "0"),))
    played.fail("a")
    played.fail("b")
    assert played.gpus.count == 0
    assert played.counted == {"a": 2, "b": 2}
    played.fail("c")
    assert played.gpus.count == 1


def test_a_trial_that_fails_wherever_it_runs_is_at_fault_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    played = Played(monkeypatch)
    for _ in range(2):
        assert played.fail("a", gpu="0") == played.fail("a", gpu="1") == [False]
    assert played.fail("a", gpu="0") == [False]
    assert played.counted == {"a": 5}
    assert played.gpus.count == 0


def test_the_trials_of_one_process_fail_once(monkeypatch: pytest.MonkeyPatch) -> None:
    played = Played(monkeypatch)
    assert played.fail("a", "b", "c") == [False] * 3
    assert played.fail("a", "b", "c") == [False] * 3
    assert played.fail("a", "b", "c") == [True] * 3
    assert played.counted == {"a": 0, "b": 0, "c": 0}


def test_a_failure_without_a_gpu_is_counted_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    played, metadata = Played(monkeypatch), SimpleNamespace(num_failures=1)
    for process, trial in enumerate("abcd"):
        assert not played.gpus.take(trial, metadata, DeviceFailed(SAID, process))
    assert not played.gpus.take("a", metadata, None)
    assert (metadata.num_failures, played.gpus.count) == (1, 0)


def test_a_search_without_a_gpu_left_ends_and_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    played = Played(monkeypatch)
    for gpu in ("0", "1"):
        assert played.gpus.none_left == ""
        for trial in "abc":
            played.fail(trial, gpu=gpu)
    named = "no GPU is left for a trial: GPU 0 of 10.0.0.5, GPU 1 of 10.0.0.5 failed (CUDA error"
    assert played.gpus.none_left.startswith(named)


def test_a_trial_of_two_gpus_has_no_place_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    played = Played(monkeypatch, GPU=2.0)
    for trial in "abc":
        played.fail(trial, gpu="1")
    assert "GPU 1 of 10.0.0.5 failed" in played.gpus.none_left


def test_the_driver_session_ends_when_no_gpu_is_left(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    driver.stopper.broken_gpus.none_left = "no GPU is left"
    with pytest.raises(SearchAborted, match="no GPU is left"):
        driver.stopper.stop_all()


def test_the_scheduler_tells_of_each_report_where_it_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, played = Driver(tmp_path), Played(monkeypatch)
    driver.scheduler._broken_gpus = played.gpus
    played.fail("a")
    played.fail("b")
    report = {"pairs_seen": 64, "eval/accuracy": 0.9, "eval/nll": 0.5, "eval/drift": 1.0}
    step = Step(report, began=1.0, seconds=1.0, devices=(Device("n", "10.0.0.5", "0"),))
    driver.scheduler.on_trial_result(None, driver.start(), result_of(step))
    played.fail("c")
    assert played.gpus.count == 0


def failed(folder: Path, trial: Any, process: int) -> Any:
    """A Tune trial that Tune gives up after a failure of GPU 0, with Tune's files about it."""
    cause = GpuFailed("n", "10.0.0.5", "0", SAID, process)
    error = RayTaskError("step", f"Traceback:\ntune.errors.GpuFailed: {cause}", cause)
    trial.error_file, trial.pickled_error_file = folder / "error.txt", folder / "error.pkl"
    trial.error_file.write_text(f"Failure # 4 (occurred at noon)\n{error}\n")
    trial.pickled_error_file.write_bytes(
        ray.cloudpickle.dumps(error.as_instanceof_cause())  # type: ignore[attr-defined]
    )
    return trial


def test_a_trial_that_a_broken_gpu_failed_is_proposed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tune asks after its own count, which other deaths had filled."""
    driver = Driver(tmp_path, budget={"failures_in_a_row": 2})
    driver.stopper.broken_gpus = driver.scheduler._broken_gpus = Played(monkeypatch).gpus
    trials = [driver.start() for _ in range(3)]
    names = [trial.config["task"].name for trial in trials]
    for process, trial in enumerate(trials):
        driver.scheduler.on_trial_error(None, failed(tmp_path, trial, process))
        driver.searcher.on_trial_complete(trial.trial_id, error=True)
    assert f"{names[0]}: GPU 0 of 10.0.0.5 failed: {SAID}" in capsys.readouterr().out
    states = [driver.records.trials[name].state for name in names]
    assert states == ["failed", "failed", "running"]  # the first two before it was known


@pytest.fixture(scope="module")
def node() -> Iterator[str]:
    """A Ray of this module's own with two GPUs that don't exist."""
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
    hold.look()
    deadline = time.monotonic() + 60
    while not (len(hold._here) == hold._places and not hold._elsewhere):
        assert time.monotonic() < deadline
        hold.look()
        time.sleep(0.1)
    await_free(1.0, hold.look)

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
    """A cluster with two GPUs that don't exist; the doubles in `tmp_path` break them."""
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
def test_a_search_is_finished_on_the_gpu_that_is_well(
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
    assert {place["gpus"] for place in places(run)} == {"1"}


@pytest.mark.slow
@pytest.mark.usefixtures("two_gpus")
def test_a_search_whose_gpus_all_fail_is_interrupted(tmp_path: Path) -> None:
    write_double(tmp_path, IN_THE_TRIALS_PROCESS, ["0", "1"])
    (tmp_path / "x.yaml").write_text(YAML + SIMULATED + "resources: {gpus: 1}\n")
    done = run_search(tmp_path)
    assert done.returncode == 130, done.stdout + done.stderr
    assert "no GPU is left for a trial: GPU" in done.stderr
    assert re.search(r"device-side assert triggered\); to go on: .* resume", done.stderr)
