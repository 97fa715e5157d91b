"""The live state of a running search: what each trial is doing, and which trials should stop.

Driver and workers exchange this through the coordinator. The module itself knows no Ray.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

LEASE_SECONDS = 15.0
"""How long a process keeps a shard of the reference pass without a sign of life."""


@dataclass(frozen=True)
class Doing:
    """What a trial is doing."""

    what: str
    """In words, for example `loading the model`. With `training` the numbers below are set."""
    pairs_done: int = 0
    next_report: int = 0
    """The pairs at which the next evaluation is due."""
    tokens_at_once: int = 0
    """The most tokens of a pass; 0 if unknown."""
    since: float = 0.0
    """The Unix time at which it began to do this."""
    pairs_total: int = 0
    """The pairs of the whole trial; 0 if unknown."""


@dataclass(frozen=True)
class ReferencePass:
    """The progress of the reference pass over one prepared folder."""

    pairs_done: int
    pairs_total: int
    seconds_left: float | None
    """None until the first shard of this search is done."""


@dataclass(frozen=True)
class Snapshot:
    """The live state at one moment, as the driver gets it."""

    trials: dict[str, Doing] = field(default_factory=dict)
    reference: ReferencePass | None = None
    """None if no reference pass is running."""


@dataclass
class _Pass:
    """The reference pass over one prepared folder, in shards."""

    pairs: list[int]
    done: set[int]
    began: float
    done_before: int
    holders: dict[int, tuple[str, float]] = field(default_factory=dict)
    """For each shard, the device that computes it and the time of its last sign of life."""


class LiveState:
    """Holds the live state. All methods may be called from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._doing: dict[str, Doing] = {}
        self._stops: set[str] = set()
        self._stop_all = False
        self._passes: dict[str, _Pass] = {}

    def tell(self, trial: str, doing: Doing) -> bool:
        """Take note of what a trial is doing, and return whether it should stop."""
        with self._lock:
            before = self._doing.get(trial)
            same = before is not None and before.what == doing.what
            since = before.since if same and before is not None else time.time()
            self._doing[trial] = replace(doing, since=since)
            return self._stop_all or trial in self._stops

    def exchange(self, running: Collection[str], stops: Collection[str], all: bool) -> Snapshot:
        """Return the live state to the driver, which names running trials and those to stop."""
        with self._lock:
            self._stops, self._stop_all = set(stops), all
            self._doing = {name: doing for name, doing in self._doing.items() if name in running}
            return Snapshot(dict(self._doing), self._reference())

    def begin_reference(self, folder: str, pairs: Sequence[int], whole: Collection[int]) -> None:
        """Begin a reference pass. `pairs` are the pairs of each shard, `whole` the shards that
        exist already."""
        with self._lock:
            if folder not in self._passes:
                done = sum(pairs[shard] for shard in whole)
                self._passes[folder] = _Pass(list(pairs), set(), time.time(), done)
            self._passes[folder].done.update(whole)

    def take_shard(self, folder: str, shard: int, device: str) -> bool:
        """Return whether a device gets a shard: if it has no other, and no other has this one."""
        now = time.time()
        with self._lock:
            known = self._passes[folder]
            live = {
                held: holder
                for held, (holder, heard) in known.holders.items()
                if now - heard < LEASE_SECONDS and held not in known.done
            }
            if shard in live or device in live.values():
                return False
            known.done.discard(shard)  # if a finished shard is requested again, it was damaged
            known.holders[shard] = (device, now)
            return True

    def hold_shard(self, folder: str, shard: int, device: str) -> None:
        """Take note that the device which has a shard is still working on it."""
        with self._lock:
            known = self._passes[folder]
            if known.holders.get(shard, ("", 0.0))[0] == device:
                known.holders[shard] = (device, time.time())

    def give_up_shard(self, folder: str, shard: int, device: str) -> None:
        """Take a shard back from a device that does not compute it after all."""
        with self._lock:
            known = self._passes[folder]
            if known.holders.get(shard, ("", 0.0))[0] == device:
                del known.holders[shard]

    def finish_shard(self, folder: str, shard: int) -> None:
        """Take note that a shard is computed."""
        with self._lock:
            self._passes[folder].done.add(shard)

    def _reference(self) -> ReferencePass | None:
        for known in self._passes.values():
            total = sum(known.pairs)
            done = sum(known.pairs[shard] for shard in known.done)
            if done < total:
                here = done - known.done_before
                seconds = (time.time() - known.began) / here * (total - done) if here else None
                return ReferencePass(done, total, seconds)
        return None
