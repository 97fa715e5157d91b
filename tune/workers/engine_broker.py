"""Which engine a packed trial belongs to: the trials of one device train in one process there.

A trial's own process stays light and asks here where its engine is. Ray accounts a device to the
trials; their engine asks for nothing and ends soon after the last one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tune.workers.engine_actor import EngineActor, Opening

_TRIALS_PER_ENGINE = 256
IDLE_SECONDS = 10
"""How long an engine outlives its last trial: a device that Ray takes for free should be."""
_AHEAD_SECONDS = 60


@dataclass
class _EngineEntry:
    actor: Any
    trials: set[str] = field(default_factory=set)


class Broker:
    """Knows the engine of each (node, device) and which trials are there."""

    def __init__(self, most_trials: int, idle_seconds: float = IDLE_SECONDS) -> None:
        """`most_trials`: how many train at once at most; a node's CPUs have no more engines."""
        self._most_trials = most_trials
        self._idle_seconds = idle_seconds
        self._engines: dict[tuple[str, str], _EngineEntry] = {}
        self._broker_lock = threading.Lock()

    def enter(self, trial: str, node: str, gpu: str | None) -> Any:
        """The engine of a trial that runs on that node, on that GPU if on one. On the CPUs there
        is one for each, so that each has a thread of its own, and the emptiest is taken."""
        with self._broker_lock:
            left = self._take_out(trial)
            on_cpus = min(_cpus(node), self._most_trials) if gpu is None else 1
            places = [f"gpu {gpu}"] if gpu is not None else [f"cpu {n}" for n in range(on_cpus)]
            engines = {(node, place): self._engines.get((node, place)) for place in places}
            key = min(engines, key=lambda key: len(there.trials) if (there := engines[key]) else 0)
            engine = engines[key]
            if engine is None or not _is_well(engine.actor):
                if engine is not None:
                    ray.kill(engine.actor)  # its GPU may have failed, and it lives
                engine = self._engines[key] = _EngineEntry(
                    _start(node, gpu, on_cpus, self._most_trials)
                )
            engine.trials.add(trial)
            if left is not None and left is not engine:
                # Of a process that died; the same engine closes it when it opens the next.
                left.actor.close.remote(trial)
            return engine.actor

    def open_ahead(self, node: str, trials: int, opening: Opening) -> None:
        """Starts the engines that so many trials will need on a node's CPUs."""
        ahead = [f"ahead {n}" for n in range(min(trials, self._most_trials, _cpus(node)))]
        for trial in ahead:
            self.enter(trial, node, None).open_ahead.remote(opening)
        # By then trials are there in their stead.
        for trial in ahead:
            _later(_AHEAD_SECONDS, self.leave, trial)

    def leave(self, trial: str) -> None:
        with self._broker_lock:
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
        with self._broker_lock:
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


def _is_well(actor: Any) -> bool:
    try:
        ray.get(actor.ping.remote())
    except RayError:  # Ray's memory monitor ends a process with an error of its own
        return False
    return True


def _start(node: str, gpu: str | None, engines: int, trials: int) -> Any:
    place = NodeAffinitySchedulingStrategy(node, soft=False)
    kind = ray.remote(EngineActor).options(
        num_cpus=0, num_gpus=0, max_concurrency=_TRIALS_PER_ENGINE, scheduling_strategy=place
    )
    return kind.remote(gpu, engines, trials)
