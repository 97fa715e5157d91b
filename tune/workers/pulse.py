"""Tells the coordinator what a worker does between two reports, and learns if it should stop."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from dpo_train.trainers.session import Session
from tune.workers.live_state import LEASE_SECONDS, Doing

COORDINATOR = "dpo-tune-coordinator"
"""The actor's name."""
_PATIENCE_SECONDS = 1.0


def find_coordinator() -> Any:
    """Return the coordinator of this process's search; None if there is none."""
    if not ray.is_initialized():
        return None
    try:
        return ray.get_actor(COORDINATOR)
    except (ValueError, RayError):
        return None


class Pulse:
    """The messages of one trial to the coordinator. Without a coordinator they are dropped."""

    def __init__(self, trial: str) -> None:
        self._trial = trial
        self._coordinator = find_coordinator()

    def begin(self, what: str) -> None:
        """Say what begins, without waiting for an answer."""
        if self._coordinator is not None:
            self._coordinator.tell.remote(self._trial, Doing(what))

    def begin_training(self, session: Session, due_at: int) -> None:
        """Say that a session trains towards its next report, without waiting for an answer."""
        if self._coordinator is not None:
            self._coordinator.tell.remote(self._trial, _progress(session, due_at))

    def tell_progress(self, session: Session, due_at: int) -> bool:
        """Say how far a session is, and return whether the trial should stop. The next report is
        due at `due_at` pairs, or at the trial's end."""
        return self.tell(_progress(session, due_at))

    def tell(self, doing: Doing) -> bool:
        """Say what the trial is doing, and return whether it should stop."""
        if self._coordinator is None:
            return False
        with suppress(RayError):
            answer = self._coordinator.tell.remote(self._trial, doing)
            return bool(ray.get(answer, timeout=_PATIENCE_SECONDS))
        return False


def _progress(session: Session, due_at: int) -> Doing:
    next_report, done = min(due_at, session.pairs_total), session.pairs_done
    return Doing(
        "training" if done < next_report else "evaluating",
        pairs_done=done,
        next_report=next_report,
        tokens_at_once=session.tokens_at_once,
        pairs_total=session.pairs_total,
    )


class SharedTurns:
    """The `Turns` of a reference pass that several devices compute together. The coordinator
    decides which device computes which shard; each device has at most one at a time."""

    def __init__(self) -> None:
        self._coordinator = find_coordinator()
        context = ray.get_runtime_context() if self._coordinator is not None else None
        gpu = os.environ.get("CUDA_VISIBLE_DEVICES") or f"process {os.getpid()}"
        self._device = f"{context.get_node_id()} {gpu}" if context is not None else ""
        self._folder = ""
        self._begun: tuple[Any, ...] = ()
        self._ended = threading.Event()

    def begin(self, folder: Path, pairs: Sequence[int], whole: Collection[int]) -> None:
        """Begin the pass over a folder: `pairs` of each shard, and the shards that exist."""
        self._folder = folder.name
        self._begun = "begin_reference", list(pairs), list(whole)
        self._ask(*self._begun)

    def take(self, shard: int) -> bool:
        """Return whether this device may compute a shard, and hold it until `done`."""
        is_given = self._ask("take_shard", shard, self._device)
        if is_given is None:  # the coordinator may have been restarted, and know nothing
            self._ask(*self._begun)
            is_given = self._ask("take_shard", shard, self._device)
        # Without an answer we compute the shard: at worst that is done twice, to the same numbers.
        if is_given is False:
            return False
        self._ended.set()
        self._ended = threading.Event()
        threading.Thread(target=self._hold, args=(shard, self._ended), daemon=True).start()
        return True

    def done(self, shard: int) -> None:
        """Say that a shard is computed."""
        self._ended.set()
        self._ask("finish_shard", shard)

    def give_up(self, shard: int) -> None:
        """Give a shard back that is not computed after all."""
        self._ended.set()
        self._ask("give_up_shard", shard, self._device)

    def _hold(self, shard: int, ended: threading.Event) -> None:
        while not ended.wait(LEASE_SECONDS / 5):
            self._ask("hold_shard", shard, self._device)

    def _ask(self, method: str, *arguments: Any) -> Any:
        if self._coordinator is None:
            return None
        with suppress(RayError):
            answer = getattr(self._coordinator, method).remote(self._folder, *arguments)
            return ray.get(answer, timeout=_PATIENCE_SECONDS)
        return None
