"""A trial on several GPUs: one member process per GPU, driven together as one session.

The members stay for the next trial of the same process. Ray Tune sees one trial, with a placement
group that packs the members on as few nodes as possible.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError
from ray.util import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from dpo_train.config import TrainConfig
from dpo_train.errors import Diverged, InputError
from dpo_train.scoring.evaluation import Evaluation
from dpo_train.trainers.process_group import ProcessGroup
from dpo_train.trainers.session import Session
from tune.cluster.capacity import bundles
from tune.config.schema import ResourcesConfig
from tune.run_folder.step import Device
from tune.workers.multi_gpu_member import Advanced, Member, Opened


class Group:
    """The member processes that a trial's process drives."""

    def __init__(self, resources: ResourcesConfig) -> None:
        placement = get_current_placement_group()
        self._members = [
            ray.remote(Member)
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
        found = ray.get([member.devices.remote() for member in self._members])
        self.devices: tuple[Device, ...] = sum(found, ())
        """The GPU of each member, in the order of their ranks."""

    def open(
        self, config: TrainConfig, prepared: Path, device: str, most_tokens: int | None = None
    ) -> Session:
        """Open a session in each member, and return them as one. Raises what a member raises."""
        opened = [
            member.open.remote(config, prepared, device, process_group, most_tokens)
            for member, process_group in zip(self._members, self._process_group, strict=True)
        ]
        return _GroupSession(self, self._get(opened))

    def first(self, function: Any, *arguments: Any) -> Any:
        """Call a function in the first member's process, on its GPU, and return what it returns."""
        return self._get([self._members[0].run.remote(function, *arguments)])[0]

    @property
    def is_ended(self) -> bool:
        """Whether the members have been ended."""
        return not self._members

    def end(self) -> None:
        """End all members. If one failed, the others may wait for it for ever."""
        for member in self._members:
            ray.kill(member)
        self._members = []

    def advance_for(self, seconds: float) -> list[Advanced]:
        """Train on all members. Either all reach an evaluation, or none does."""
        answers = self._get([member.advance_for.remote(seconds) for member in self._members])
        if any(each.evaluation is not None for each in answers):
            late = [n for n, each in enumerate(answers) if each.evaluation is None]
            rest = self._get([self._members[n].advance_for.remote(math.inf) for n in late])
            for n, each in zip(late, rest, strict=True):
                answers[n] = each
        return answers

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of every member's session, and return what each returns."""
        return self._get([member.call.remote(method, *arguments) for member in self._members])

    def _get(self, answers: list[Any]) -> list[Any]:
        try:
            return list(ray.get(answers))
        except (RayActorError, OutOfMemoryError):  # the second is not a kind of the first
            self.end()
            raise
        except RayTaskError as error:
            if not isinstance(error.cause, Diverged | InputError):  # all members raise these
                self.end()
            raise error.cause from None


class _GroupSession:
    """A Session that passes every call on to all members, and answers with what rank 0 returns."""

    def __init__(self, group: Group, opened: list[Opened]) -> None:
        self._group = group
        self.pairs_total = opened[0].pairs_total
        self.pairs_at_once = opened[0].pairs_at_once
        self.tokens_at_once = opened[0].tokens_at_once
        self.reference_pairs = sum(each.reference_pairs for each in opened)
        self.pairs_done = 0

    def advance(self) -> Evaluation:
        """Train to the next evaluation and return it."""
        evaluation = self.advance_for(math.inf)
        assert evaluation is not None
        return evaluation

    def advance_for(self, seconds: float) -> Evaluation | None:
        """Train towards the next evaluation; return None if it is not reached in `seconds`."""
        answers = self._group.advance_for(seconds)
        self.pairs_done = answers[0].pairs_done
        found = [each.evaluation for each in answers if each.evaluation is not None]
        if not found:
            return None
        peak = max(each.report.get("peak_memory_gb", 0.0) for each in found)
        return replace(found[0], report={**found[0].report, "peak_memory_gb": peak})

    def save(self, folder: Path) -> int:
        """Save the trial's state into a folder; return its pairs, the same for all members."""
        return int(self._group.call("save", folder)[0])

    def restore(self, folder: Path) -> None:
        """Restore the state of a folder."""
        self._group.call("restore", folder)

    def export(self, folder: Path) -> None:
        """Write the weights into a folder."""
        self._group.call("export", folder)

    def close(self) -> None:
        """Close all members' sessions. The members stay."""
        self._group.call("close")
