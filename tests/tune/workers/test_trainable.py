"""When a trial's process lets Tune try again, and when it reports a failure as it is."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError

from dpo_train.config import TrainConfig
from dpo_train.config_base import override
from dpo_train.errors import DeviceFailed, OutOfMemory
from tests.conftest import ROOT
from tests.helpers.run_records import records_of
from tune.config.schema import SearchConfig
from tune.run_folder.paths import RunFolder
from tune.workers.outcome import Ending, outcome_of
from tune.workers.pulse import Pulse
from tune.workers.tasks import EvaluateTask, Task, TestTask, TrainTask
from tune.workers.trainable import DpoTrial

SIMULATED = """
name: sim
trainer: simulated
optim: {batch_size: 8}
space: {optim.learning_rate: {log_uniform: [1e-4, 1e-2]}}
trials: 3
stopping: {name: none}
eval_every_pairs: 128
simulated: {pairs: 512}
save_every_minutes: 0
wandb: {mode: disabled}
"""


class Process(DpoTrial):
    """A trial's process without Ray; the process that owned its GPU died."""

    def __init__(self, run: Path, task: Task) -> None:
        self._run = RunFolder.at(run)
        self._task = task
        self._pulse = Pulse("a")
        self._reported = 0
        confirm = {"evaluate": "my:function"}
        self._search = SearchConfig.model_validate({"name": "x", "confirm": confirm})

    def _find_run(self) -> Any:
        return SimpleNamespace(prepared_folder=Path(), device="cpu")

    def _on_device(self, function: Any, *arguments: Any) -> Any:
        raise RayActorError


@pytest.mark.parametrize("task", [TestTask("x"), EvaluateTask("a", "x", "", ".")])
def test_a_member_that_dies_during_the_test_evaluation_costs_no_number(
    tmp_path: Path, task: Task
) -> None:
    with pytest.raises(RayActorError):
        Process(tmp_path, task).step()


class Full:
    """A session that runs out of memory."""

    def advance_for(self, seconds: float) -> Any:
        raise OutOfMemory("out of memory with one pair at once")


def test_a_packed_trial_without_memory_is_not_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = Process(tmp_path, TrainTask("a", str(tmp_path), {}))
    process._session = Full()  # type: ignore[assignment]
    process._trial = override(TrainConfig(), {"trainer": "packed", "lora": {}})
    monkeypatch.setattr(process, "_save_if_due", lambda: None)
    monkeypatch.setattr(process, "_open", lambda _: pytest.fail("it was begun again"))
    with pytest.raises(OutOfMemory, match="with one pair at once"):
        process._advance(TrainTask("a", str(tmp_path), {}))


class Broken:
    """A session whose GPU has failed, so that all its calls fail."""

    def __init__(self, message: str) -> None:
        self._said = message

    def advance_for(self, seconds: float) -> Any:
        raise RuntimeError(self._said)

    def close(self) -> None:
        raise RuntimeError(self._said)


def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str) -> Process:
    process = Process(tmp_path, TrainTask("a", str(tmp_path), {}))
    process._session = Broken(message)  # type: ignore[assignment]
    process._trial = override(TrainConfig(), {"trainer": "trl"})
    monkeypatch.setattr(process, "_save_if_due", lambda: None)
    return process


def test_a_trial_whose_gpu_failed_goes_on_in_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch  # noqa: F401  # a process that used a GPU has it

    process = broken(tmp_path, monkeypatch, "CUDA error: device-side assert triggered\nSearch for")
    with pytest.raises(DeviceFailed, match=r"^the GPU failed: CUDA error: device-side assert"):
        process.step()
    process.cleanup()  # must not use the device


def test_another_error_ends_the_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = broken(tmp_path, monkeypatch, "shape '[2]' is invalid for input of size 3")
    (tmp_path / "trials").mkdir()
    assert outcome_of(process.step()).ending is Ending.FAILED


BREAKS_ONCE = """
import os, sys
if any("default_worker" in word for word in sys.orig_argv):
    import torch
    from dpo_train.trainers.simulated import SimulatedSession
    own = SimulatedSession.advance_for
    def advance_for(self, seconds):
        broken = os.path.exists("{mark}")
        if self.pairs_done >= 256 and not broken:
            open("{mark}", "w").close()
            SimulatedSession.broken = True
        if getattr(SimulatedSession, "broken", False):
            raise RuntimeError("CUDA error: device-side assert triggered")
        return own(self, seconds)
    SimulatedSession.advance_for = advance_for
"""


@pytest.mark.slow
def test_a_search_goes_on_after_a_gpu_failed(tmp_path: Path) -> None:
    """A double stands in for the GPU. From one moment on all calls of one process fail."""
    (tmp_path / "sitecustomize.py").write_text(BREAKS_ONCE.format(mark=tmp_path / "mark"))
    (tmp_path / "sim.yaml").write_text(SIMULATED)
    done = subprocess.run(
        [sys.executable, "-m", "tune", "run", "sim.yaml"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    message = (
        "the GPU failed: CUDA error: device-side assert triggered; it goes on in another process"
    )
    assert done.stdout.count(message) == 1, done.stdout
    records = records_of(tmp_path / "runs" / "sim")
    assert [record.state for record in records] == ["finished"] * 3
    for record in records:
        assert [report["pairs_seen"] for report in record.curve] == [128, 256, 384, 512]
