"""A trial on several GPUs: member processes on the trial's own bundles, driven as one session.

The members stay for the process's next trial. Ray Tune sees one trial, on a placement group that
packs its members on as few nodes as they fit.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from dpo_train.config import TrainConfig
from dpo_train.errors import InputError
from dpo_train.trainers.open import open_session
from dpo_train.trainers.process_group import ProcessGroup
from dpo_train.trainers.session import Diverged, Session
from tune.cluster.capacity import bundles
from tune.config.schema import ResourcesConfig
from tune.workers.threads import limit_threads


class Group:
    """The members of one trial's process."""

    def __init__(self, resources: ResourcesConfig) -> None:
        placement = get_current_placement_group()
        self._members = [
            ray.remote(_Member)
            .options(
                num_cpus=bundle["CPU"],
                num_gpus=bundle["GPU"],
                scheduling_strategy=PlacementGroupSchedulingStrategy(placement, index),
            )
            .remote()
            for index, bundle in enumerate(bundles(resources).bundles[1:], start=1)
        ]
        host, port = ray.get(self._members[0].meeting_place.remote())
        count = resources.members
        self._process_group = [
            ProcessGroup(rank, count, host, port, resources.sharded) for rank in range(count)
        ]
        self.gpus = ",".join(ray.get([member.gpus.remote() for member in self._members]))
        """What each member sees, in the order of their ranks."""

    def open(self, config: TrainConfig, prepared: Path, device: str) -> Session:
        """Each member's session, as one. Raises what a member raises."""
        opened = [
            member.open.remote(config, prepared, device, process_group)
            for member, process_group in zip(self._members, self._process_group, strict=True)
        ]
        return _GroupSession(self, self._get(opened))

    def first(self, function: Any, *arguments: Any) -> Any:
        """What a function returns in the first member's process, on its GPU."""
        return self._get([self._members[0].run.remote(function, *arguments)])[0]

    @property
    def is_ended(self) -> bool:
        return not self._members

    def end(self) -> None:
        """Ends the members: one that failed may have left the others waiting for it."""
        for member in self._members:
            ray.kill(member)
        self._members = []

    def advance(self) -> list[tuple[dict[str, float], dict[str, list[float]]]]:
        return self._get([member.advance.remote() for member in self._members])

    def call(self, method: str, *arguments: Any) -> None:
        """A method of every member's session."""
        self._get([member.call.remote(method, *arguments) for member in self._members])

    def _get(self, answers: list[Any]) -> list[Any]:
        try:
            return list(ray.get(answers))
        except RayActorError:
            self.end()
            raise
        except RayTaskError as error:
            if not isinstance(error.cause, Diverged | InputError):  # these all members raise
                self.end()
            raise error.cause from None


class _GroupSession:
    """A Session whose every call is each member's; rank 0 answers."""

    def __init__(self, group: Group, opened: list[tuple[int, int]]) -> None:
        """`opened`: pairs_total and reference_pairs of each member's."""
        self._group = group
        self.pairs_total = opened[0][0]
        self.reference_pairs = sum(computed for _, computed in opened)
        self.held_out: dict[str, list[float]] = {}

    def advance(self) -> dict[str, float]:
        told = self._group.advance()
        report, self.held_out = told[0]
        peak = max(each.get("peak_memory_gb", 0.0) for each, _ in told)
        return {**report, "peak_memory_gb": peak}

    def save(self, folder: Path) -> None:
        self._group.call("save", folder)

    def restore(self, folder: Path) -> None:
        self._group.call("restore", folder)

    def export(self, folder: Path) -> None:
        self._group.call("export", folder)

    def close(self) -> None:
        self._group.call("close")


class _Member:
    """An actor with one rank's session."""

    def __init__(self) -> None:
        self._session: Session | None = None

    def meeting_place(self) -> tuple[str, int]:
        with socket.create_server(("", 0)) as free:
            return ray.util.get_node_ip_address(), free.getsockname()[1]

    def gpus(self) -> str:
        return os.environ.get("CUDA_VISIBLE_DEVICES", "")

    def open(
        self, config: TrainConfig, prepared: Path, device: str, process_group: ProcessGroup
    ) -> tuple[int, int]:
        if config.trainer == "trl":
            limit_threads()
        self._rank = process_group.rank
        self._session = session = open_session(config, prepared, device, process_group)
        return session.pairs_total, session.reference_pairs

    def advance(self) -> tuple[dict[str, float], dict[str, list[float]]]:
        assert self._session is not None
        report = self._session.advance()
        return report, self._session.held_out if self._rank == 0 else {}

    def run(self, function: Any, *arguments: Any) -> Any:
        return function(*arguments)

    def call(self, method: str, *arguments: Any) -> None:
        getattr(self._session, method)(*arguments)
