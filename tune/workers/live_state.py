"""What the workers of a running search do between two reports, and which of them should stop.

The driver and the workers meet here; it knows no Ray, so any process can hold it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

LEASE_SECONDS = 15.0
"""How long a shard of the reference pass belongs to a process that is not heard of."""


@dataclass(frozen=True)
class Doing:
    """What a trial is doing."""

    what: str
    """For example `loading the model`; `training` has the numbers below."""
    pairs_done: int = 0
    next_report: int = 0
    """The pairs at which its next evaluation comes."""
    tokens_at_once: int = 0
    """The most tokens of a pass; 0 where they aren't known."""
    since: float = 0.0
    """Unix time since which it does that."""
    pairs_total: int = 0
    """Pairs until its end; 0 where they aren't known."""


@dataclass(frozen=True)
class ReferencePass:
    """How far the reference log-probs of one prepared folder are."""

    pairs_done: int
    pairs_total: int
    seconds_left: float | None
    """None until the first shard of this search is done."""


@dataclass(frozen=True)
class Snapshot:
    """What the driver learns from one look."""

    trials: dict[str, Doing] = field(default_factory=dict)
    reference: ReferencePass | None = None
    """None when no process works on it."""


@dataclass
class _Pass:
    """The shards of a prepared folder."""

    pairs: list[int]
    done: set[int]
    began: float
    done_before: int
    holders: dict[int, tuple[str, float]] = field(default_factory=dict)
    """By shard the device whose process computes it, and when it was last heard of."""


class LiveState:
    """All methods may be called from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._doing: dict[str, Doing] = {}
        self._stops: set[str] = set()
        self._stop_all = False
        self._passes: dict[str, _Pass] = {}

    def tell(self, trial: str, doing: Doing) -> bool:
        """Takes note of what a trial does. Returns whether it should stop."""
        with self._lock:
            before = self._doing.get(trial)
            same = before is not None and before.what == doing.what
            since = before.since if same and before is not None else time.time()
            self._doing[trial] = replace(doing, since=since)
            return self._stop_all or trial in self._stops

    def exchange(self, running: Collection[str], stops: Collection[str], all: bool) -> Snapshot:
        """The driver's look: it names the trials that run and those that should stop."""
        with self._lock:
            self._stops, self._stop_all = set(stops), all
            self._doing = {name: doing for name, doing in self._doing.items() if name in running}
            return Snapshot(dict(self._doing), self._reference())

    def begin_reference(self, folder: str, pairs: Sequence[int], whole: Collection[int]) -> None:
        """Names the shards of a prepared folder: the pairs of each, and which exist already."""
        with self._lock:
            if folder not in self._passes:
                done = sum(pairs[shard] for shard in whole)
                self._passes[folder] = _Pass(list(pairs), set(), time.time(), done)
            self._passes[folder].done.update(whole)

    def take_shard(self, folder: str, shard: int, device: str) -> bool:
        """Gives a shard to a device that has none, unless another is at work on it."""
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
            known.done.discard(shard)  # one that is wanted again was damaged
            known.holders[shard] = (device, now)
            return True

    def hold_shard(self, folder: str, shard: int, device: str) -> None:
        """Says that the process which took a shard is still at work."""
        with self._lock:
            known = self._passes[folder]
            if known.holders.get(shard, ("", 0.0))[0] == device:
                known.holders[shard] = (device, time.time())

    def give_up_shard(self, folder: str, shard: int, device: str) -> None:
        """Says that the process which took a shard doesn't compute it after all."""
        with self._lock:
            known = self._passes[folder]
            if known.holders.get(shard, ("", 0.0))[0] == device:
                del known.holders[shard]

    def finish_shard(self, folder: str, shard: int) -> None:
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
