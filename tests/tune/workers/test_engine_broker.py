"""Packed trials share one engine on their device. It ends when it should; its death costs none."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from dpo_train.config import TrainConfig
from dpo_train.errors import DeviceFailed, InputError
from dpo_train.memory import kernel_kills
from tests.conftest import Start
from tests.helpers.run_records import records_of
from tests.helpers.simulated_search import trial_processes, wait_until
from tune.errors import EngineLost
from tune.workers import engine_broker, engine_session
from tune.workers.engine_actor import Opening
from tune.workers.engine_broker import Broker
from tune.workers.engine_session import EngineSession

pytestmark = pytest.mark.slow

YAML = """
name: packed
data: {limit: 60}
trainer: packed
lora: {r: 4, alpha: 8}
optim: {learning_rate: 1e-3, batch_size: 8, epochs: 16}
space:
  dpo.beta: {log_uniform: [0.05, 0.5]}
  optim.batch_size: {choice: [4, 8]}
trials: 4
stopping: {name: none}
eval_every_pairs: 80
save_every_minutes: 0
resources: {cpus: 0.5}
wandb: {mode: disabled}
"""


def has_torch(process: int) -> bool:
    return "libtorch_cpu" in Path(f"/proc/{process}/maps").read_text()


def unique_megabytes(process: int) -> float:
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1000


def test_the_death_of_all_engines_costs_no_trial(tmp_path: Path, start: Start) -> None:
    yaml, run = tmp_path / "packed.yaml", tmp_path / "runs" / "packed"
    yaml.write_text(YAML)
    process = start("run", yaml)
    wait_until(
        lambda: [len(record.curve) >= 1 for record in records_of(run)] == [True] * 4,
        process,
    )
    workers = trial_processes(process.pid)
    engines = [worker for worker in workers if has_torch(worker)]
    assert len(engines) == 2  # one engine per CPU; the trials' own processes have no torch
    assert len(workers) >= 2 + 4
    assert all(unique_megabytes(worker) < 130 for worker in workers if worker not in engines)
    for engine in engines:
        os.kill(engine, signal.SIGKILL)
    output, _ = process.communicate(timeout=150)
    assert process.returncode == 0, output
    for record in records_of(run):
        assert record.state == "finished", record.error
        assert [report["pairs_seen"] for report in record.curve] == list(range(80, 641, 80))
        assert record.metrics["eval/drift"] > 0
    assert (run / "winner" / "adapter_model.safetensors").exists()


@pytest.fixture(scope="module")
def node() -> Iterator[str]:
    """Start a Ray for this module with two CPUs and two GPUs that don't exist."""
    environment = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    os.environ.update(environment)
    ray.init("local", num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False,
             logging_level="ERROR")  # fmt: skip
    yield ray.get_runtime_context().get_node_id()
    ray.shutdown()
    for name in environment:
        del os.environ[name]


def is_alive(engine: object) -> bool:
    try:
        ray.get(engine.ping.remote())  # type: ignore[attr-defined]
    except ray.exceptions.RayActorError:
        return False
    return True


def await_death(engine: object) -> None:
    """Wait until Ray has killed an actor, which happens some time after the request."""
    deadline = time.monotonic() + 10
    while is_alive(engine):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_an_engine_ends_soon_after_its_last_trial_left(node: str) -> None:
    broker = Broker(8, idle_seconds=1)
    engine = broker.enter("a", node, "0")
    assert broker.enter("b", node, "0") is engine
    broker.leave("a")
    time.sleep(1.5)
    assert is_alive(engine)
    broker.leave("b")
    assert broker.enter("c", node, "0") is engine  # a trial in time finds the engine warm
    time.sleep(1.5)
    assert is_alive(engine)
    broker.leave("c")
    await_death(engine)
    again = broker.enter("d", node, "0")
    assert again is not engine
    assert is_alive(again)
    ray.kill(again)
    await_death(again)
    assert is_alive(broker.enter("e", node, "0"))  # a dead engine is not handed out


def test_trials_meet_by_their_gpu_and_share_out_the_cpus(node: str) -> None:
    broker = Broker(8, idle_seconds=1)
    on_gpus = [broker.enter(f"g{n}", node, str(n % 2)) for n in range(4)]
    assert [engine is on_gpus[0] for engine in on_gpus] == [True, False, True, False]
    seen = [
        ray.get(engine.__ray_call__.remote(lambda _: os.environ["CUDA_VISIBLE_DEVICES"]))
        for engine in on_gpus[:2]
    ]
    assert seen == ["0", "1"]
    on_cpus = [broker.enter(f"c{n}", node, None) for n in range(4)]
    assert [engine is on_cpus[0] for engine in on_cpus] == [True, False, True, False]
    assert not set(map(id, on_cpus)) & set(map(id, on_gpus))


class OfABrokenGpu:
    """A session in an engine whose GPU is broken."""

    def advance(self) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")


def test_an_engine_whose_gpu_failed_is_ended(node: str) -> None:
    broker = Broker(8, idle_seconds=60)
    engine = broker.enter("a", node, "0")
    ray.get(engine.__ray_call__.remote(lambda actor: actor._sessions.update(a=OfABrokenGpu())))
    entered = object.__new__(engine_session._Engine)  # this is what a trial's process holds
    entered._trial, entered._actor, entered._kills_before = "a", engine, kernel_kills()
    for _ in range(2):  # first the GPU fails, from then on its process
        with pytest.raises(DeviceFailed, match="^the GPU failed: CUDA error: device-side assert"):
            entered.ask("advance")
    assert broker.enter("a", node, "0") is not engine  # the next trial gets another engine
    await_death(engine)


class Recorded:
    """An engine's actor that records which trials it is to close."""

    def __init__(self, *_: object) -> None:
        self.closed: list[str] = []
        self.close = SimpleNamespace(remote=self.closed.append)


def test_a_trial_that_comes_to_another_engine_is_closed_in_the_one_it_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_broker, "_start", Recorded)
    monkeypatch.setattr(engine_broker, "_is_well", lambda _: True)
    broker = Broker(8)
    left = broker.enter("a", "node", "0")
    broker.enter("b", "node", "0")
    assert broker.enter("a", "node", "0") is left
    assert left.closed == []
    assert broker.enter("a", "node", "1").closed == []
    assert left.closed == ["a"]


class Refusing:
    """An entry into an engine in which nothing can be opened."""

    left: list[str] = []

    def __init__(self, trial: str) -> None:
        self._trial = trial

    def ask(self, *_: object) -> Any:
        raise InputError("no")

    def leave(self) -> None:
        self.left.append(self._trial)


def test_a_trial_that_could_not_be_opened_leaves_its_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_session, "_Engine", Refusing)
    with pytest.raises(InputError):
        EngineSession("a", Opening(TrainConfig(), Path(), "cpu"))
    assert Refusing.left == ["a"]


def test_a_dead_broker_lets_tune_try_again(monkeypatch: pytest.MonkeyPatch) -> None:
    context = SimpleNamespace(get_accelerator_ids=dict, get_node_id=lambda: "node")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    with pytest.raises(EngineLost, match="no engine was given to a: there is no coordinator"):
        EngineSession("a", Opening(TrainConfig(), Path(), "cpu"))
