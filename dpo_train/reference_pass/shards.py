"""Runs the reference pass in shards, which the processes of one or many machines share.

A shard is written whole, so a pass that was killed goes on with the missing ones. This module knows
neither tokens nor models: `score` computes a shard.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import random
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dpo_train.storage import mirror
from dpo_train.storage.files import write_here

SHARDS = "shards"
_POLL_SECONDS = 0.3


class Turns(Protocol):
    """Decides which shards this process may compute. A search spreads them over its devices.

    Locks on the disk already keep two processes of a machine from computing the same shard, so an
    implementation need not. Each call comes from the thread that called `prepare`, which waits for
    the answer.
    """

    def begin(self, folder: Path, pairs: Sequence[int], whole: Collection[int]) -> None:
        """Take note that the pass begins or goes on.

        It is called once for each `prepare`, unless the data is finished already. `pairs[n]` is the
        number of rows in shard n. Shard 0 has the longest rows, and the last shard the shortest.
        `whole` has the numbers of the shards that exist already.
        """
        ...

    def take(self, shard: int) -> bool:
        """Return whether this process may compute the shard now.

        After False the shard is offered again at each poll (every 0.3 seconds) until it is whole.
        After True the process computes it at once, and holds its lock until it is written. A shard
        that is offered again after `done` was damaged, and must be computed again.
        """
        ...

    def done(self, shard: int) -> None:
        """Take note that the shard is whole, whoever wrote it. It may be called more than once."""
        ...

    def give_up(self, shard: int) -> None:
        """Take note that this process does not compute the shard that it took.

        There was an error, or other processes have merged all shards meanwhile.
        """
        ...


class Alone:
    """Takes every shard that no other process of this machine computes, and prints nothing."""

    def begin(self, folder: Path, pairs: Sequence[int], whole: Collection[int]) -> None:
        """Do nothing."""

    def take(self, shard: int) -> bool:
        """Take every shard."""
        return True

    def done(self, shard: int) -> None:
        """Do nothing."""

    def give_up(self, shard: int) -> None:
        """Do nothing."""


ALONE = Alone()


@dataclass(frozen=True)
class ScoredShard:
    """The reference log-probs of a shard, in its order of rows."""

    ref_chosen_logps: list[float]
    """Sums over the completion's tokens, in nats."""
    ref_rejected_logps: list[float]


class Pass:
    """One process's part of the reference pass over a folder."""

    def __init__(
        self,
        folder: Path,
        shards: Sequence[Sequence[int]],
        score: Callable[[Sequence[int]], ScoredShard],
        turns: Turns,
    ) -> None:
        self.computed_pairs = 0
        self._folder = folder
        self._shards = shards
        self._score = score
        self._turns = turns
        self._files_at_url = self._list_url()
        numbers = range(len(shards))
        self._whole = {shard for shard in numbers if self._is_whole(shard)}
        on_url = {shard for shard in numbers if self._is_at_url(shard)}
        turns.begin(folder, [len(shard) for shard in shards], self._whole | on_url)

    def run(self) -> None:
        """Compute shards until all are whole, or until a manifest shows that they were merged."""
        self._files_at_url = self._list_url()
        while not self._is_merged() and not self.is_complete:
            missing = [n for n in range(len(self._shards)) if n not in self._whole]
            if mirror.url(self._folder) is not None:
                # Other machines do not see our locks, and would compute the same shards if all
                # started with the first. So each starts at a random shard.
                first = random.randrange(len(missing))
                missing = missing[first:] + missing[:first]
            found = [self._advance(shard) for shard in missing]  # a list, so that each is tried
            if not any(found):
                time.sleep(_POLL_SECONDS)
                self._files_at_url = self._list_url()
        for shard in set(range(len(self._shards))) - self._whole:
            self._turns.done(shard)  # others have merged it before this process saw it

    @property
    def is_complete(self) -> bool:
        """Whether all shards are whole."""
        return len(self._whole) == len(self._shards)

    def results(self) -> list[ScoredShard] | None:
        """Return all shards; None if one was damaged meanwhile, which then counts as missing."""
        shards = []
        for number in sorted(self._whole):
            shard = _read_shard(_file(self._folder, number))
            if shard is None:
                self._whole.remove(number)
            else:
                shards.append(shard)
        return shards if self.is_complete else None

    def _advance(self, shard: int) -> bool:
        """Find the shard, or compute it if `turns` allows. Return whether it is whole now."""
        if self._is_merged():
            return False
        if not self._is_whole(shard):
            with _lock(_file(self._folder, shard).with_suffix(".lock")) as locked:
                # Another process may have written or even merged it before we got the lock.
                if not locked or not (
                    self._is_whole(shard) or self._fetch(shard) or self._compute(shard)
                ):
                    return False
        self._whole.add(shard)
        self._turns.done(shard)
        return True

    def _compute(self, shard: int) -> bool:
        if self._is_merged() or not self._turns.take(shard):
            return False
        made = False
        try:
            made = self._make(shard)
        finally:
            if not made:
                self._turns.give_up(shard)
        return made

    def _make(self, shard: int) -> bool:
        if mirror.url(self._folder) is not None:
            self._files_at_url = self._list_url()  # another machine may have uploaded it just now
            if self._is_merged() or self._fetch(shard):
                return self._is_whole(shard)
        indices = self._shards[shard]
        file = _file(self._folder, shard)
        content = json.dumps(vars(self._score(indices)), separators=(",", ":"))
        self.computed_pairs += len(indices)
        try:
            file.parent.mkdir(exist_ok=True)
            write_here(file, f"{_digest(content)}\n{content}")
            mirror.put(file)
        except FileNotFoundError:
            # Another machine has computed the shard, and all were merged and removed meanwhile.
            if not self._is_merged():
                raise
        return True

    def _fetch(self, shard: int) -> bool:
        """Download the shard if another machine uploaded it. Return whether it is whole now."""
        file = _file(self._folder, shard)
        if not self._is_at_url(shard):
            return False
        mirror.fetch(file)
        return self._is_whole(shard)

    def _is_at_url(self, shard: int) -> bool:
        return f"{SHARDS}/{_file(self._folder, shard).name}" in self._files_at_url

    def _is_whole(self, shard: int) -> bool:
        return _read_content(_file(self._folder, shard)) is not None

    def _is_merged(self) -> bool:
        manifest = "manifest.json"
        return (self._folder / manifest).is_file() or manifest in self._files_at_url

    def _list_url(self) -> Collection[str]:
        """Return the files at the folder's URL by relative path; none if it has no URL."""
        return () if mirror.url(self._folder) is None else mirror.sizes(self._folder)


def remove_shards(folder: Path) -> None:
    """Remove the shards of a folder whose data is finished, here and at its URL."""
    mirror.remove(folder / SHARDS)


def _file(folder: Path, shard: int) -> Path:
    return folder / SHARDS / f"{shard:04d}.json"


def _read_shard(file: Path) -> ScoredShard | None:
    content = _read_content(file)
    if content is None:
        return None
    return ScoredShard(**json.loads(content))


def _read_content(file: Path) -> str | None:
    """Return the text of a shard; None if it is missing or damaged."""
    try:
        written, _, content = file.read_text(encoding="utf-8").partition("\n")
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    return content if _digest(content) == written else None


def _digest(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Yield whether this process got the lock. A lock is freed when its process dies."""
    try:
        path.parent.mkdir(exist_ok=True)
        file = path.open("w")
    except FileNotFoundError:  # the shards were merged and removed just now
        yield False
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
