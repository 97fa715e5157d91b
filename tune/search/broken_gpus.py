"""GPUs that fail again and again: which they are, and actors that hold them, so that no trial is
placed there.

A broken GPU ends a trial's process within seconds and is then the first that is free: left alone
it goes through all trials of a search.
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
"""How long actors wait for a place on a broken GPU, and how long until they try again. Those that
Ray placed on other GPUs stay so long, or Ray would give them the same GPU again."""


class BrokenGpus:
    """Counts the failures of each GPU, and holds a GPU after three in a row under at least two
    trials. A trial that fails alone wherever it runs is at fault itself."""

    def __init__(self, trial: PlacementGroupFactory, signs: SignsOfLife) -> None:
        self.trial = trial
        """What a trial asks of Ray."""
        self._signs = signs
        self._failures: dict[Device, _Failures] = {}
        self._holds: dict[Device, _Hold] = {}
        self.none_left = ""
        """Says that no trial can be placed any more; empty while one can."""

    def __reduce__(self) -> Any:
        """Ray Tune pickles what it is given; a copy knows of no failure."""
        return BrokenGpus, (self.trial, self._signs)

    def works(self, devices: Iterable[Device]) -> None:
        """A trial that has these GPUs reported."""
        for device in devices:
            self._failures.pop(device, None)

    def take(self, trial: str, metadata: Any, failure: DeviceFailed | None) -> bool:
        """Counts a trial's failure. Returns whether its GPU is broken: then the trial's failures
        there are none of the few that Ray Tune allows it.

        `metadata`: where Ray Tune counts the trial's failures, its `run_metadata`.
        """
        if not isinstance(failure, GpuFailed):
            return False
        device = Device(failure.node, failure.address, failure.gpu)
        failures = self._failures.setdefault(device, _Failures())
        failures.trials.append((trial, metadata))
        failures.processes.add(failure.process)
        if device in self._holds:
            self._holds[device].begin_again()
        elif not failures.are_the_gpus:
            return False
        else:
            self._break(device, failure)
        for _, each in failures.trials:
            each.num_failures = max(0, each.num_failures - 1)
        del self._failures[device]
        return True

    def hold(self) -> None:
        """Sees to the actors that hold the broken GPUs; never waits for them."""
        for hold in self._holds.values():
            hold.look()

    def close(self) -> None:
        for hold in self._holds.values():
            hold.close()

    @property
    def count(self) -> int:
        """How many GPUs of the cluster as it is now are broken."""
        return sum(self._by_node().values()) if self._holds else 0

    def _break(self, device: Device, failure: GpuFailed) -> None:
        self._holds[device] = _Hold(device, min(1.0, self._wanted))
        self._signs.say(
            f"warning: {device} failed {_IN_A_ROW} times in a row ({failure.reason}); it is held, "
            "so that no trial is placed on it, until this command ends"
        )
        broken = self._by_node()
        left = [gpus - broken[node] for node, gpus in _gpus_by_node().items()]
        most = max(left) if self.trial.strategy == "STRICT_PACK" else sum(left)
        if most < self._wanted:
            names = ", ".join(map(str, self._holds))
            self.none_left = f"no GPU is left for a trial: {names} failed ({failure.reason})"

    @property
    def _wanted(self) -> float:
        """GPUs of a trial."""
        return float(self.trial.required_resources.get("GPU", 0))

    def _by_node(self) -> Counter[str]:
        """Broken GPUs of each node that is there."""
        there = _gpus_by_node()
        return Counter(device.node for device in self._holds if device.node in there)


def _gpus_by_node() -> dict[str, float]:
    """The GPUs of the nodes that are there."""
    return {
        node["NodeID"]: node["Resources"].get("GPU", 0.0) for node in ray.nodes() if node["Alive"]
    }


@dataclass
class _Failures:
    """The failures of one GPU since the last report from there."""

    trials: list[tuple[str, Any]] = field(default_factory=list)
    """Each trial that failed, with Ray Tune's count of its failures."""
    processes: set[int] = field(default_factory=set)
    """A process fails once: the packed trials of a GPU fail together."""

    @property
    def are_the_gpus(self) -> bool:
        return len(self.processes) >= _IN_A_ROW and len({name for name, _ in self.trials}) > 1


class _Hold:
    """The actors that hold one GPU.

    Ray can't be asked for a certain GPU of a node. So actors that take as much of a GPU as a trial
    are started on that node until the GPU is full of them; those that Ray placed on other GPUs stay
    meanwhile and end then.
    """

    def __init__(self, device: Device, share: float) -> None:
        """`share`: what a trial takes of a GPU, which at least divides what others leave free."""
        self._device, self._share = device, share
        self._places = int(1 / share + 1e-6)
        self._asked: dict[Any, Any] = {}
        """By its answer each actor that Ray has not placed yet."""
        self._here: list[Any] = []
        self._elsewhere: list[Any] = []
        self._asked_at = self._next_try = 0.0

    def look(self) -> None:
        """Learns where actors were placed, and starts those that are missing."""
        now = time.monotonic()
        for answer in self._answers():
            actor = self._asked.pop(answer)
            try:
                is_here = self._device in ray.get(answer)
            except RayError:  # the node is gone, or something ended the actor
                self._next_try = now + _PATIENCE_SECONDS
                continue
            (self._here if is_here else self._elsewhere).append(actor)
        missing = self._places - len(self._here) - len(self._asked)
        if self._asked and now > self._asked_at + _PATIENCE_SECONDS:
            _end([*self._asked.values(), *self._elsewhere])
            self._asked, self._elsewhere = {}, []
            self._next_try = now + _PATIENCE_SECONDS
        elif missing and now >= self._next_try:
            for _ in range(missing):
                actor = self._start()
                self._asked[actor.devices.remote()] = actor
            self._asked_at = now
        elif len(self._here) == self._places:
            _end(self._elsewhere)
            self._elsewhere = []

    def begin_again(self) -> None:
        """A trial failed there all the same: what held the GPU died, or does not hold it yet."""
        self._next_try = 0.0
        if len(self._here) == self._places:
            _end(self._here)
            self._here = []

    def close(self) -> None:
        _end([*self._asked.values(), *self._here, *self._elsewhere])

    def _answers(self) -> list[Any]:
        asked = list(self._asked)
        return ray.wait(asked, num_returns=len(asked), timeout=0)[0] if asked else []

    def _start(self) -> Any:
        place = NodeAffinitySchedulingStrategy(self._device.node, soft=False)
        kind = ray.remote(Holder).options(
            num_cpus=0, num_gpus=self._share, scheduling_strategy=place
        )
        return kind.remote()


def _end(actors: Iterable[Any]) -> None:
    for actor in actors:
        ray.kill(actor)
