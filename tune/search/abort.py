"""Ends a driver session early when it can't do its work, so that the search goes on in a later one.

The reasons are a full disk, a record that can't be written, and the loss of Ray's processes on this
machine or of its GPUs.
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
    """Checks at every turn of Ray Tune's loop whether the session must end.

    It raises SearchAborted instead of returning True: then Ray Tune ends all processes without
    reporting that their trials have ended.
    """

    def __init__(self, records: Records, broken_gpus: BrokenGpus) -> None:
        self._records = records
        self.broken_gpus = broken_gpus
        self.at_each_turn: Callable[[], None] = lambda: None
        """This function is called at every turn as well."""
        self._checked_at = 0.0
        self.reason = ""

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return False: no single trial is stopped here."""
        return False

    def stop_all(self) -> bool:
        """Return False, or raise SearchAborted."""
        self.at_each_turn()
        self.broken_gpus.hold()
        if error := self._records.unwritten:
            self.reason = f"{self._records.folder} can't be written ({one_line(error)})"
        elif self.broken_gpus.none_left:
            self.reason = self.broken_gpus.none_left
        elif time.monotonic() - self._checked_at > _POLL_SECONDS:
            self._checked_at = time.monotonic()
            if _is_cut_off():
                # Ray's raylet ends when an agent beside it ends, and a driver without a raylet
                # would wait for ever, so we stop.
                self.reason = "Ray's processes on this machine ended"
        if self.reason:
            raise SearchAborted(self.reason)
        return False


def store_failure(error: BaseException | None) -> BaseException | None:
    """Return the StoreError among the causes of an error that Ray Tune raised, or None."""
    while error is not None and not isinstance(error, StoreError):
        error = error.__cause__ or error.__context__
    return error


def _is_cut_off() -> bool:
    mine = ray.get_runtime_context().get_node_id()
    return any(node["NodeID"] == mine and not node["Alive"] for node in ray.nodes())
