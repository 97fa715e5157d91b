"""Assigns packed trials to engines: the trials of one device train in one engine process there.

A trial's own process stays light, and asks here for its engine. Ray gives the device to the trials;
the engine requests nothing from Ray and ends soon after its last trial.
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
"""How long an engine outlives its last trial. Ray then already counts the device as free, so the
engine must leave it soon."""
_AHEAD_SECONDS = 60


@dataclass
class _EngineEntry:
    actor: Any
    trials: set[str] = field(default_factory=set)


class Broker:
    """Knows the engine of each (node, device), and the trials in each engine."""

    def __init__(self, most_trials: int, idle_seconds: float = IDLE_SECONDS) -> None:
        """`most_trials` is how many trials may run at once. A node's CPUs never have more engines
        than that."""
        self._most_trials = most_trials
        self._idle_seconds = idle_seconds
        self._engines: dict[tuple[str, str], _EngineEntry] = {}
        self._broker_lock = threading.Lock()

    def enter(self, trial: str, node: str, gpu: str | None) -> Any:
        """Return the engine for a trial on that node, and on that GPU if it has one.

        Each CPU of a node has an engine of its own, with one thread, and we take the one with the
        fewest trials.
        """
        with self._broker_lock:
            # --- choose the engine with the fewest trials ---
            previous = self._take_out(trial)
            count = min(_cpus(node), self._most_trials) if gpu is None else 1  # engines
            devices = [f"gpu {gpu}"] if gpu is not None else [f"cpu {n}" for n in range(count)]
            engines = {(node, device): self._engines.get((node, device)) for device in devices}
            key = min(engines, key=lambda key: len(found.trials) if (found := engines[key]) else 0)

            # --- start it if there is none, or if it is dead ---
            engine = engines[key]
            if engine is None or not _is_well(engine.actor):
                if engine is not None:
                    ray.kill(engine.actor)  # its GPU may have failed while the process lives on
                engine = self._engines[key] = _EngineEntry(
                    _start(node, gpu, count, self._most_trials)
                )
            engine.trials.add(trial)

            if previous is not None and previous is not engine:
                # The trial's process died and left a session in another engine, so we close it.
                # (The same engine closes it by itself when it opens the trial again.)
                previous.actor.close.remote(trial)
            return engine.actor

    def open_ahead(self, node: str, trials: int, opening: Opening) -> None:
        """Start the engines that `trials` trials will need on a node's CPUs."""
        ahead = [f"ahead {n}" for n in range(min(trials, self._most_trials, _cpus(node)))]
        for trial in ahead:
            self.enter(trial, node, None).open_ahead.remote(opening)
        # An engine without trials would end, so these names stay until real trials have come.
        for trial in ahead:
            _later(_AHEAD_SECONDS, self.leave, trial)

    def leave(self, trial: str) -> None:
        """Take note that a trial no longer uses its engine."""
        with self._broker_lock:
            self._take_out(trial)

    def _take_out(self, trial: str) -> _EngineEntry | None:
        """Remove a trial from its engine, and return that engine; None if it was in none."""
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
    on_node = NodeAffinitySchedulingStrategy(node, soft=False)
    kind = ray.remote(EngineActor).options(
        num_cpus=0, num_gpus=0, max_concurrency=_TRIALS_PER_ENGINE, scheduling_strategy=on_node
    )
    return kind.remote(gpu, engines, trials)
