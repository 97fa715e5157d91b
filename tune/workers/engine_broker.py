"""Packed trials of one device train in one process there: the engine. A trial's own process stays
light, asks the broker where its engine is, and holds a session that passes everything on.

An actor dies with the one that made it, so the broker, which the driver owns, makes the engines.
Ray accounts a device to the trials; their engine asks for nothing and ends soon after the last one.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dpo_train.config import ModelConfig, TrainConfig
from dpo_train.errors import one_line
from dpo_train.storage import mirror
from dpo_train.trainers.open import open_session
from dpo_train.trainers.session import Session
from tune.config.schema import SearchConfig

_BROKER = "dpo-tune-engines"
_TRIALS_PER_ENGINE = 256
IDLE_SECONDS = 10
"""How long an engine outlives its last trial: a device that Ray takes for free should be."""
_AHEAD_SECONDS = 60
_Opening = tuple[TrainConfig, Path, str]
"""A trial's config, the prepared folder, the device."""


class EngineLost(Exception):
    """The engine's process died. Its trials go on from their saved states in a new one."""


@contextmanager
def brokered(config: SearchConfig, prepared: str) -> Iterator[None]:
    """A search's broker, if its trials need one; with it all engines end."""
    if config.trainer != "packed":
        yield
        return
    # A name is known to this driver's own actors alone. Beside the driver: the search must not
    # end with some other node.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"name": _BROKER, "num_cpus": 0, "scheduling_strategy": here}
    broker = ray.remote(Broker).options(**options).remote()
    nodes = ray.nodes()
    if config.device == "cpu" and len(nodes) == 1:
        # The engines import and prepare while Tune starts the trials' processes.
        opening = (config.base_trial(), mirror.local(prepared), config.device)
        broker.open_ahead.remote(nodes[0]["NodeID"], config.total_trials, opening)
    try:
        yield
    finally:
        ray.kill(broker)


@dataclass
class _EngineEntry:
    actor: Any
    trials: set[str] = field(default_factory=set)


class Broker:
    """Knows the engine of each (node, device) and which trials are there."""

    def __init__(self, idle_seconds: float = IDLE_SECONDS) -> None:
        self._idle_seconds = idle_seconds
        self._engines: dict[tuple[str, str], _EngineEntry] = {}
        self._lock = threading.Lock()

    def enter(self, trial: str, node: str, gpu: str | None) -> Any:
        """The engine of a trial that runs on that node, on that GPU if on one. On the CPUs there
        is one for each, so that each has a thread of its own, and the emptiest is taken."""
        with self._lock:
            left = self._take_out(trial)
            places = [f"gpu {gpu}"] if gpu is not None else [f"cpu {n}" for n in range(_cpus(node))]
            engines = {(node, place): self._engines.get((node, place)) for place in places}
            key = min(engines, key=lambda key: len(there.trials) if (there := engines[key]) else 0)
            engine = engines[key]
            if engine is None or not _is_alive(engine.actor):
                engine = self._engines[key] = _EngineEntry(_start(node, gpu))
            engine.trials.add(trial)
            if left is not None and left is not engine:
                # Of a process that died; the same engine closes it when it opens the next.
                left.actor.close.remote(trial)
            return engine.actor

    def open_ahead(self, node: str, trials: int, opening: _Opening) -> None:
        """Starts the engines that so many trials will need on a node's CPUs."""
        ahead = [f"ahead {n}" for n in range(min(trials, _cpus(node)))]
        for trial in ahead:
            self.enter(trial, node, None).open_ahead.remote(*opening)
        # By then trials are there in their stead.
        for trial in ahead:
            _later(_AHEAD_SECONDS, self.leave, trial)

    def leave(self, trial: str) -> None:
        with self._lock:
            self._take_out(trial)

    def _take_out(self, trial: str) -> _EngineEntry | None:
        """Says where it was."""
        for key, engine in self._engines.items():
            if trial in engine.trials:
                engine.trials.remove(trial)
                if not engine.trials:
                    _later(self._idle_seconds, self._end_if_idle, key, engine)
                return engine
        return None

    def _end_if_idle(self, key: tuple[str, str], engine: _EngineEntry) -> None:
        with self._lock:
            if not engine.trials and self._engines.get(key) is engine:
                del self._engines[key]
                ray.kill(engine.actor)


def _later(seconds: float, act: Callable[..., None], *arguments: Any) -> None:
    timer = threading.Timer(seconds, act, arguments)
    timer.daemon = True
    timer.start()


def _cpus(node: str) -> int:
    (found,) = (known for known in ray.nodes() if known["NodeID"] == node)
    return max(1, int(found["Resources"].get("CPU", 1)))


def _is_alive(actor: Any) -> bool:
    try:
        ray.get(actor.ping.remote())
    except RayActorError:
        return False
    return True


def _start(node: str, gpu: str | None) -> Any:
    place = NodeAffinitySchedulingStrategy(node, soft=False)
    kind = ray.remote(EngineActor).options(
        num_cpus=0, num_gpus=0, max_concurrency=_TRIALS_PER_ENGINE, scheduling_strategy=place
    )
    return kind.remote(gpu)


class EngineActor:
    """Holds the sessions of a device's trials; in one process they are one pack."""

    def __init__(self, gpu: str | None) -> None:
        if gpu is not None:  # before torch is imported; Ray gave the GPU to the trials
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
        self._sessions: dict[str, Session] = {}
        self._uncounted = 0
        self._opening = threading.Lock()

    def ping(self) -> None: ...

    def open(self, trial: str, config: TrainConfig, prepared: Path, device: str) -> dict[str, int]:
        with self._opening:  # libraries that import late don't bear it from two threads
            _one_thread()
            self.close(trial)  # of a process of this trial that died
            session = self._sessions[trial] = open_session(config, prepared, device)
            counted = self._uncounted + session.reference_pairs
            self._uncounted = 0
        return {"pairs_total": session.pairs_total, "reference_pairs": counted}

    def open_ahead(self, config: TrainConfig, prepared: Path, device: str) -> None:
        with suppress(Exception):  # a trial meets it again and tells it
            self._uncounted = self.open("", config, prepared, device)["reference_pairs"]
            self.close("")

    def advance(self, trial: str) -> tuple[dict[str, float], dict[str, list[float]]]:
        _one_thread()
        session = self._sessions[trial]
        return session.advance(), session.held_out

    def call(self, trial: str, method: str, *arguments: Any) -> Any:
        return getattr(self._sessions[trial], method)(*arguments)

    def close(self, trial: str) -> None:
        if session := self._sessions.pop(trial, None):
            session.close()

    def evaluate_on_test(self, _: str, *asked: Any) -> Any:
        from dpo_train.evaluation import test_split  # imports torch, slowly

        _one_thread()
        return test_split.evaluate_on_test(*asked)


def _one_thread() -> None:
    """Whichever of the actor's threads this is: each has a number of its own."""
    import torch  # slow to import

    torch.set_num_threads(1)


class EngineSession:
    """A Session whose training is done by the engine of this process's device.

    Raises what the session there raises, and EngineLost.
    """

    def __init__(self, trial: str, config: TrainConfig, prepared: Path, device: str) -> None:
        self._engine = _Entered(trial)
        try:
            opened = self._engine.ask("open", config, prepared, device)
        except BaseException:
            self._engine.leave()
            raise
        self.pairs_total: int = opened["pairs_total"]
        self.reference_pairs: int = opened["reference_pairs"]
        self.held_out: dict[str, list[float]] = {}

    def advance(self) -> dict[str, float]:
        report: dict[str, float]
        report, self.held_out = self._engine.ask("advance")
        return report

    def save(self, folder: Path) -> None:
        self._engine.ask("call", "save", folder)

    def restore(self, folder: Path) -> None:
        self._engine.ask("call", "restore", folder)

    def export(self, folder: Path) -> None:
        self._engine.ask("call", "export", folder)

    def close(self) -> None:
        with suppress(EngineLost):
            self._engine.ask("close")
        self._engine.leave()


def evaluate_on_test(
    winner: Path,
    base: ModelConfig,
    prepared: Path,
    device: str,
    searched: Path | None,
    sampled: dict[str, Path],
) -> dict[str, Any]:
    """`dpo_train.evaluation.test_split.evaluate_on_test`, where the base is warm."""
    engine = _Entered("test-split")
    try:
        asked = (winner, base, prepared, device, searched, sampled)
        verdict: dict[str, Any] = engine.ask("evaluate_on_test", *asked)
        return verdict
    finally:
        engine.leave()


class _Entered:
    """A place in the engine of the device that Ray gave to this process. Raises EngineLost."""

    def __init__(self, trial: str) -> None:
        self._trial = trial
        context = ray.get_runtime_context()
        gpus = context.get_accelerator_ids().get("GPU", [])
        place = (context.get_node_id(), gpus[0] if gpus else None)
        try:
            self._broker = ray.get_actor(_BROKER)
            self._actor = ray.get(self._broker.enter.remote(trial, *place))
        except (ValueError, RayActorError) as error:
            raise EngineLost(f"no engine was given to {trial}: {one_line(error)}") from error

    def ask(self, method: str, *arguments: Any) -> Any:
        try:
            return ray.get(getattr(self._actor, method).remote(self._trial, *arguments))
        except RayTaskError as error:
            raise error.cause from None
        except RayActorError as error:
            raise EngineLost(f"the engine of {self._trial} died") from error

    def leave(self) -> None:
        self._broker.leave.remote(self._trial)
