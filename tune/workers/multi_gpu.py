"""A trial on several GPUs: member processes on the trial's own bundles, driven as one session.

The members stay for the process's next trial. Ray Tune sees one trial, on a placement group that
packs its members on as few nodes as they fit.
"""

from __future__ import annotations

import math
import os
import socket
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError
from ray.util import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from dpo_train.config import TrainConfig
from dpo_train.device_errors import device_failures_named
from dpo_train.errors import Diverged, InputError
from dpo_train.scoring.evaluation import Evaluation
from dpo_train.trainers.open import open_session
from dpo_train.trainers.process_group import ProcessGroup
from dpo_train.trainers.session import Session
from tune.cluster.capacity import bundles
from tune.config.schema import ResourcesConfig
from tune.workers.memory_share import memory_bounds
from tune.workers.pulse import SharedTurns
from tune.workers.threads import limit_threads


@dataclass(frozen=True)
class _Opened:
    """What a member says of its session."""

    pairs_total: int
    reference_pairs: int
    pairs_at_once: int
    tokens_at_once: int


@dataclass(frozen=True)
class _Advanced:
    """What a member says after a slice of training; rank 0 has the values of the held-out pairs."""

    evaluation: Evaluation | None
    pairs_done: int


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

    def open(
        self, config: TrainConfig, prepared: Path, device: str, most_tokens: int | None = None
    ) -> Session:
        """Each member's session, as one. Raises what a member raises."""
        opened = [
            member.open.remote(config, prepared, device, process_group, most_tokens)
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

    def advance_for(self, seconds: float) -> list[_Advanced]:
        """All members reach an evaluation, or none does."""
        answers = self._get([member.advance_for.remote(seconds) for member in self._members])
        if any(each.evaluation is not None for each in answers):
            late = [n for n, each in enumerate(answers) if each.evaluation is None]
            rest = self._get([self._members[n].advance_for.remote(math.inf) for n in late])
            for n, each in zip(late, rest, strict=True):
                answers[n] = each
        return answers

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """What a method of every member's session returns."""
        return self._get([member.call.remote(method, *arguments) for member in self._members])

    def _get(self, answers: list[Any]) -> list[Any]:
        try:
            return list(ray.get(answers))
        except (RayActorError, OutOfMemoryError):  # the second one is no kind of the first
            self.end()
            raise
        except RayTaskError as error:
            if not isinstance(error.cause, Diverged | InputError):  # these all members raise
                self.end()
            raise error.cause from None


class _GroupSession:
    """A Session whose every call is each member's; rank 0 answers."""

    def __init__(self, group: Group, opened: list[_Opened]) -> None:
        self._group = group
        self.pairs_total = opened[0].pairs_total
        self.pairs_at_once = opened[0].pairs_at_once
        self.tokens_at_once = opened[0].tokens_at_once
        self.reference_pairs = sum(each.reference_pairs for each in opened)
        self.pairs_done = 0

    def advance(self) -> Evaluation:
        evaluation = self.advance_for(math.inf)
        assert evaluation is not None
        return evaluation

    def advance_for(self, seconds: float) -> Evaluation | None:
        answers = self._group.advance_for(seconds)
        self.pairs_done = answers[0].pairs_done
        found = [each.evaluation for each in answers if each.evaluation is not None]
        if not found:
            return None
        peak = max(each.report.get("peak_memory_gb", 0.0) for each in found)
        return replace(found[0], report={**found[0].report, "peak_memory_gb": peak})

    def save(self, folder: Path) -> int:
        """All hold at the same step, so all return the same."""
        return int(self._group.call("save", folder)[0])

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
        self,
        config: TrainConfig,
        prepared: Path,
        device: str,
        process_group: ProcessGroup,
        most_tokens: int | None = None,
    ) -> _Opened:
        if config.trainer == "trl":
            limit_threads()
        self._rank = process_group.rank
        computed = 0
        if config.trainer == "trl":
            from dpo_train import reference  # imports torch, slowly

            computed = reference.prepare(prepared, SharedTurns()).computed_pairs
        bounds = memory_bounds(process_group.count, most_tokens=most_tokens)
        with device_failures_named():
            session = open_session(config, prepared, device, process_group, bounds)
        self._session = session
        return _Opened(
            session.pairs_total,
            session.reference_pairs + computed,
            session.pairs_at_once,
            session.tokens_at_once,
        )

    def advance_for(self, seconds: float) -> _Advanced:
        assert self._session is not None
        with device_failures_named():
            found = self._session.advance_for(seconds)
        if found is not None and self._rank > 0:
            found = Evaluation(found.report)
        return _Advanced(found, self._session.pairs_done)

    def run(self, function: Any, *arguments: Any) -> Any:
        with device_failures_named():
            return function(*arguments)

    def call(self, method: str, *arguments: Any) -> Any:
        with device_failures_named():
            return getattr(self._session, method)(*arguments)
