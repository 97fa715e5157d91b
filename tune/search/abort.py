"""What ends a driver session early, so that the search goes on in another one.

It is a full disk, a record that can't be written, the loss of Ray's processes on this machine, or
that of its GPUs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray
from ray.tune import Stopper

from dpo_train.errors import StoreError, one_line
from tune.errors import SearchAborted
from tune.run_folder.records import Records
from tune.search.broken_gpus import BrokenGpus

_POLL_SECONDS = 2.0


class AbortStopper(Stopper):
    """Ray Tune asks it at every turn of its loop.

    It raises SearchAborted there, because then Ray Tune ends all processes and tells nobody that a
    trial has ended.
    """

    def __init__(self, records: Records, broken_gpus: BrokenGpus) -> None:
        self._records = records
        self.broken_gpus = broken_gpus
        self.at_each_turn: Callable[[], None] = lambda: None
        """Called at every turn too."""
        self._looked = 0.0
        self.reason = ""

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        self.at_each_turn()
        self.broken_gpus.hold()
        if error := self._records.unwritten:
            self.reason = f"{self._records.folder} can't be written ({one_line(error)})"
        elif self.broken_gpus.none_left:
            self.reason = self.broken_gpus.none_left
        elif time.monotonic() - self._looked > _POLL_SECONDS:
            self._looked = time.monotonic()
            if _is_cut_off():
                # Ray's raylet ends when an agent beside it does, and a driver without one waits
                # for ever.
                self.reason = "Ray's processes on this machine ended"
        if self.reason:
            raise SearchAborted(self.reason)
        return False


def store_failure(error: BaseException | None) -> BaseException | None:
    """What Tune was told of a store that failed, inside what it makes of that."""
    while error is not None and not isinstance(error, StoreError):
        error = error.__cause__ or error.__context__
    return error


def _is_cut_off() -> bool:
    mine = ray.get_runtime_context().get_node_id()
    return any(node["NodeID"] == mine and not node["Alive"] for node in ray.nodes())
