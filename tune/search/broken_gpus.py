"""Finds GPUs that fail again and again, and occupies them so that no trial is placed there.

A broken GPU ends a trial's process within seconds, and then it is the first that is free. So, left
alone, it would fail all trials of a search one after the other.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError
from ray.tune import PlacementGroupFactory
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dpo_train.errors import DeviceFailed
from tune.errors import GpuFailed
from tune.run_folder.step import Device
from tune.search.signs_of_life import SignsOfLife
from tune.workers.devices import Holder

_IN_A_ROW = 3
_PATIENCE_SECONDS = 20.0
"""How long actors wait to be placed on a broken GPU, and how long until they try again. Actors that
Ray placed on other GPUs stay that long, or Ray would give them the same GPU again."""


class BrokenGpus:
    """Counts the failures of each GPU. A GPU that fails three times in a row, with at least two
    different trials, is broken; with one trial alone, the trial may be at fault."""

    def __init__(self, trial: PlacementGroupFactory, signs: SignsOfLife) -> None:
        self.trial = trial
        """The resources that a trial requests from Ray."""
        self._signs = signs
        self._failures: dict[Device, _Failures] = {}
        self._holds: dict[Device, _Hold] = {}
        self.none_left = ""
        """Says why no trial can be placed any more; empty while one can."""

    def __reduce__(self) -> Any:
        """Pickle a copy that knows of no failure, since Ray Tune pickles its arguments."""
        return BrokenGpus, (self.trial, self._signs)

    def note_report(self, devices: Iterable[Device]) -> None:
        """Take note that these GPUs work: a trial that has them sent a report."""
        for device in devices:
            self._failures.pop(device, None)

    def count_failure(self, trial: str, metadata: Any, failure: DeviceFailed | None) -> bool:
        """Count a trial's failure, and return whether its GPU is broken.

        If it is, the trials' failures there don't count among the few that Ray Tune allows.
        `metadata` is the trial's `run_metadata`, in which Ray Tune counts its failures.
        """
        if not isinstance(failure, GpuFailed):
            return False
        device = Device(failure.node, failure.address, failure.gpu)
        failures = self._failures.setdefault(device, _Failures())
        failures.trials.append((trial, metadata))
        failures.processes.add(failure.process)
        if device in self._holds:
            self._holds[device].begin_again()
        elif not failures.show_a_broken_gpu:
            return False
        else:
            self._break(device, failure)
        for _, each in failures.trials:
            each.num_failures = max(0, each.num_failures - 1)
        del self._failures[device]
        return True

    def hold(self) -> None:
        """Keep actors on all broken GPUs. This never waits."""
        for hold in self._holds.values():
            hold.update()

    def close(self) -> None:
        """Free the broken GPUs."""
        for hold in self._holds.values():
            hold.close()

    @property
    def count(self) -> int:
        """How many GPUs of the cluster, as it is now, are broken."""
        return sum(self._by_node().values()) if self._holds else 0

    def _break(self, device: Device, failure: GpuFailed) -> None:
        self._holds[device] = _Hold(device, min(1.0, self._gpus_of_a_trial))
        self._signs.say(
            f"warning: {device} failed {_IN_A_ROW} times in a row ({failure.reason}); it is not "
            "used for trials any more until this command ends"
        )
        broken = self._by_node()
        left = [gpus - broken[node] for node, gpus in _gpus_by_node().items()]
        most = max(left) if self.trial.strategy == "STRICT_PACK" else sum(left)
        if most < self._gpus_of_a_trial:
            names = ", ".join(map(str, self._holds))
            self.none_left = f"no GPU is left for a trial: {names} failed ({failure.reason})"

    @property
    def _gpus_of_a_trial(self) -> float:
        return float(self.trial.required_resources.get("GPU", 0))

    def _by_node(self) -> Counter[str]:
        """Return how many GPUs are broken on each node that is alive."""
        alive = _gpus_by_node()
        return Counter(device.node for device in self._holds if device.node in alive)


def _gpus_by_node() -> dict[str, float]:
    """Return how many GPUs each node has that is alive."""
    return {
        node["NodeID"]: node["Resources"].get("GPU", 0.0) for node in ray.nodes() if node["Alive"]
    }


@dataclass
class _Failures:
    """The failures of one GPU since a trial last reported from it."""

    trials: list[tuple[str, Any]] = field(default_factory=list)
    """Each trial that failed, with its `run_metadata`."""
    processes: set[int] = field(default_factory=set)
    """The processes that failed. The packed trials of a GPU share one, and fail together."""

    @property
    def show_a_broken_gpu(self) -> bool:
        """Whether the GPU must be at fault, and not one trial."""
        return len(self.processes) >= _IN_A_ROW and len({name for name, _ in self.trials}) > 1


class _Hold:
    """The actors that hold one GPU.

    Ray can't be asked for a particular GPU of a node. So we start actors on that node, each as
    large as a trial, until they fill the GPU. Actors that Ray placed on other GPUs stay until then,
    so that Ray does not choose those GPUs again.
    """

    def __init__(self, device: Device, share: float) -> None:
        """`share` is the part of a GPU that a trial takes, so what is free is a multiple of it."""
        self._device, self._share = device, share
        self._slots = int(1 / share + 1e-6)
        self._pending: dict[Any, Any] = {}
        """The actors that Ray has not placed yet, by the answer that will say where they are."""
        self._here: list[Any] = []
        self._elsewhere: list[Any] = []
        self._started_at = self._next_try = 0.0

    def update(self) -> None:
        """Learn where actors were placed, and start those that are missing."""
        now = time.monotonic()
        for answer in self._answers():
            actor = self._pending.pop(answer)
            try:
                is_here = self._device in ray.get(answer)
            except RayError:  # the node is gone, or something ended the actor
                self._next_try = now + _PATIENCE_SECONDS
                continue
            (self._here if is_here else self._elsewhere).append(actor)
        missing = self._slots - len(self._here) - len(self._pending)
        if self._pending and now > self._started_at + _PATIENCE_SECONDS:
            _end([*self._pending.values(), *self._elsewhere])
            self._pending, self._elsewhere = {}, []
            self._next_try = now + _PATIENCE_SECONDS
        elif missing and now >= self._next_try:
            for _ in range(missing):
                actor = self._start()
                self._pending[actor.devices.remote()] = actor
            self._started_at = now
        elif len(self._here) == self._slots:
            _end(self._elsewhere)
            self._elsewhere = []

    def begin_again(self) -> None:
        """Start over after a trial still failed on this GPU: an actor died, or is not there yet."""
        self._next_try = 0.0
        if len(self._here) == self._slots:
            _end(self._here)
            self._here = []

    def close(self) -> None:
        """End all actors."""
        _end([*self._pending.values(), *self._here, *self._elsewhere])

    def _answers(self) -> list[Any]:
        pending = list(self._pending)
        return ray.wait(pending, num_returns=len(pending), timeout=0)[0] if pending else []

    def _start(self) -> Any:
        node = NodeAffinitySchedulingStrategy(self._device.node, soft=False)
        kind = ray.remote(Holder).options(
            num_cpus=0, num_gpus=self._share, scheduling_strategy=node
        )
        return kind.remote()


def _end(actors: Iterable[Any]) -> None:
    for actor in actors:
        ray.kill(actor)
