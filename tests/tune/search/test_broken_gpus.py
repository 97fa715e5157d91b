"""GPUs that fail repeatedly are distinguished from trials that fail, and are held back."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import RayTaskError
from ray.tune import PlacementGroupFactory

from dpo_train.errors import DeviceFailed
from tests.helpers.driver import Driver, result_of
from tune.errors import GpuFailed, SearchAborted
from tune.run_folder.step import Device, Step
from tune.search import broken_gpus
from tune.search.broken_gpus import BrokenGpus
from tune.search.signs_of_life import SignsOfLife

SAID = "CUDA error: device-side assert triggered"


class Played:
    """Counts failures on a node with some GPUs, without holding any of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, gpus: int = 2, **trial: float) -> None:
        node = {"NodeID": "n", "Alive": True, "Resources": {"GPU": float(gpus)}}
        monkeypatch.setattr(ray, "nodes", lambda: [node])
        monkeypatch.setattr(broken_gpus, "_Hold", lambda *_: SimpleNamespace(begin_again=str))
        wanted = PlacementGroupFactory([{"CPU": 1.0, "GPU": 1.0, **trial}])
        self.gpus = BrokenGpus(wanted, SignsOfLife())
        self.failures: dict[str, Any] = {}
        self._process = 0

    def fail(self, *trials: str, gpu: str = "0") -> list[bool]:
        """Let the trials of one process fail. Return for each whether the GPU is to blame."""
        self._process += 1
        failure = GpuFailed("n", "10.0.0.5", gpu, SAID, self._process)
        blamed = []
        for trial in trials:
            metadata = self.failures.setdefault(trial, SimpleNamespace(num_failures=0))
            metadata.num_failures += 1  # Tune counts before it reports the failure
            blamed.append(self.gpus.count_failure(trial, metadata, failure))
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
    assert played.fail("c") == [True]  # this trial was placed before the GPU was held
    assert played.counted["c"] == 0
    assert capsys.readouterr().out == ""


def test_a_report_from_a_gpu_resets_its_failure_count(monkeypatch: pytest.MonkeyPatch) -> None:
    played = Played(monkeypatch)
    played.fail("a")
    played.fail("b")
    played.gpus.note_report((Device("n", "10.0.0.5", "1"),))  # another GPU
    played.gpus.note_report((Device("n", "10.0.0.5", "0"),))
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


def test_a_failure_without_a_gpu_counts_as_the_trials_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    played, metadata = Played(monkeypatch), SimpleNamespace(num_failures=1)
    for process, trial in enumerate("abcd"):
        assert not played.gpus.count_failure(trial, metadata, DeviceFailed(SAID, process))
    assert not played.gpus.count_failure("a", metadata, None)
    assert (metadata.num_failures, played.gpus.count) == (1, 0)


def test_a_search_without_a_gpu_left_ends_and_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    played = Played(monkeypatch)
    for gpu in ("0", "1"):
        assert played.gpus.none_left == ""
        for trial in "abc":
            played.fail(trial, gpu=gpu)
    named = "no GPU is left for a trial: GPU 0 of 10.0.0.5, GPU 1 of 10.0.0.5 failed (CUDA error"
    assert played.gpus.none_left.startswith(named)


def test_a_trial_of_two_gpus_can_not_go_on_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    played = Played(monkeypatch, GPU=2.0)
    for trial in "abc":
        played.fail(trial, gpu="1")
    assert "GPU 1 of 10.0.0.5 failed" in played.gpus.none_left


def test_the_driver_session_ends_when_no_gpu_is_left(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    driver.stopper.broken_gpus.none_left = "no GPU is left"
    with pytest.raises(SearchAborted, match="no GPU is left"):
        driver.stopper.stop_all()


def test_the_scheduler_resets_the_failure_count_of_the_gpu_of_a_report(
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
    """Return a trial that Tune abandons after a failure of GPU 0, with Tune's files about it."""
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
    """Tune asks only after its own failure count is full, here because of other deaths."""
    driver = Driver(tmp_path, budget={"failures_in_a_row": 2})
    driver.stopper.broken_gpus = driver.scheduler._broken_gpus = Played(monkeypatch).gpus
    trials = [driver.start() for _ in range(3)]
    names = [trial.config["task"].name for trial in trials]
    for process, trial in enumerate(trials):
        driver.scheduler.on_trial_error(None, failed(tmp_path, trial, process))
        driver.searcher.on_trial_complete(trial.trial_id, error=True)
    assert f"{names[0]}: GPU 0 of 10.0.0.5 failed: {SAID}" in capsys.readouterr().out
    states = [driver.records.trials[name].state for name in names]
    # The first two failed before the GPU was known as broken.
    assert states == ["failed", "failed", "running"]
