"""One process of a trial on several GPUs: an actor with one rank's session.

It does not use Ray Tune, so that members need not import it.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from dpo_train.config import TrainConfig
from dpo_train.scoring.evaluation import Evaluation
from dpo_train.trainers.open import open_session
from dpo_train.trainers.process_group import ProcessGroup
from dpo_train.trainers.session import Session
from tune.run_folder.step import Device
from tune.workers.devices import devices_here, gpu_failures_named
from tune.workers.memory_share import memory_bounds
from tune.workers.pulse import SharedTurns
from tune.workers.threads import limit_threads
from tune.workers.unused import leave_out_unused


@dataclass(frozen=True)
class Opened:
    """What a member says about its session."""

    pairs_total: int
    reference_pairs: int
    pairs_at_once: int
    tokens_at_once: int


@dataclass(frozen=True)
class Advanced:
    """What a member says after some training. Only rank 0 has the values of the held-out pairs."""

    evaluation: Evaluation | None
    pairs_done: int


class Member:
    """Does what the group requests from each member."""

    def __init__(self) -> None:
        leave_out_unused()
        self._session: Session | None = None

    def meeting_place(self) -> tuple[str, int]:
        """Return an address and a free port at which the members can find each other."""
        with socket.create_server(("", 0)) as free:
            return ray.util.get_node_ip_address(), free.getsockname()[1]

    def devices(self) -> tuple[Device, ...]:
        """Return this member's GPUs."""
        return devices_here()

    def open(
        self,
        config: TrainConfig,
        prepared: Path,
        device: str,
        process_group: ProcessGroup,
        most_tokens: int | None = None,
    ) -> Opened:
        """Open this rank's session."""
        if config.trainer == "trl":
            limit_threads()
        self._rank = process_group.rank
        computed = 0
        if config.trainer == "trl":
            from dpo_train import reference  # imports torch, slowly

            computed = reference.prepare(prepared, SharedTurns()).computed_pairs
        bounds = memory_bounds(process_group.count, most_tokens=most_tokens)
        with gpu_failures_named():
            session = open_session(config, prepared, device, process_group, bounds)
        self._session = session
        return Opened(
            session.pairs_total,
            session.reference_pairs + computed,
            session.pairs_at_once,
            session.tokens_at_once,
        )

    def advance_for(self, seconds: float) -> Advanced:
        """Train towards the next evaluation for at most `seconds`."""
        assert self._session is not None
        with gpu_failures_named():
            found = self._session.advance_for(seconds)
        if found is not None and self._rank > 0:
            found = Evaluation(found.report)
        return Advanced(found, self._session.pairs_done)

    def run(self, function: Any, *arguments: Any) -> Any:
        """Call a function in this process."""
        with gpu_failures_named():
            return function(*arguments)

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of this rank's session."""
        with gpu_failures_named():
            return getattr(self._session, method)(*arguments)
