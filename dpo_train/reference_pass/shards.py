"""The reference pass in shards, which processes of one or many machines share out among themselves.

A shard is written whole, so a pass that was killed goes on with those that are missing. Knows
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
    """Says which shards this process may compute, for example so that a search spreads them over
    its devices. Locks on the machine's disk already keep two processes of a machine from computing
    one shard at the same time, so an implementation need not.

    Each call comes from the thread that called `prepare`, which waits for the answer.
    """

    def begin(self, folder: Path, pairs: Sequence[int], whole: Collection[int]) -> None:
        """The pass begins or goes on. It is called once for each `prepare`, unless the data is
        finished already.

        `pairs[n]` is the number of rows in shard n. The rows of shard 0 are the longest, those of
        the last one the shortest. `whole` has the numbers of the shards that exist already.
        """
        ...

    def take(self, shard: int) -> bool:
        """Whether this process may compute the shard now.

        After False the shard is offered again at each poll (every 0.3 seconds) until it is whole.
        After True the process computes it at once, and holds its lock until it is written. A shard
        that is offered although it was `done` was damaged since and has to be computed anew.
        """
        ...

    def done(self, shard: int) -> None:
        """The shard is whole, whoever wrote it. It may be called more than once for a shard."""
        ...

    def give_up(self, shard: int) -> None:
        """The shard that this process took isn't computed after all: an error came, or others had
        merged all meanwhile."""
        ...


class Alone:
    """Takes every shard that no other process of this machine computes, and says nothing."""

    def begin(self, folder: Path, pairs: Sequence[int], whole: Collection[int]) -> None:
        pass

    def take(self, shard: int) -> bool:
        return True

    def done(self, shard: int) -> None:
        pass

    def give_up(self, shard: int) -> None:
        pass


ALONE = Alone()


@dataclass(frozen=True)
class ScoredShard:
    """What is computed of a shard, in its order of rows."""

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
        self._listed = self._list_url()
        numbers = range(len(shards))
        self._whole = {shard for shard in numbers if self._is_whole(shard)}
        on_url = {shard for shard in numbers if self._is_listed(shard)}
        turns.begin(folder, [len(shard) for shard in shards], self._whole | on_url)

    def run(self) -> None:
        """Computes shards until all are whole, or until a manifest says that they were merged."""
        self._listed = self._list_url()
        while not self._is_merged() and not self.is_complete:
            missing = [n for n in range(len(self._shards)) if n not in self._whole]
            if mirror.url(self._folder) is not None:
                # Other machines do not see our locks. From the same beginning each of them would
                # compute the same shards, so each begins elsewhere.
                first = random.randrange(len(missing))
                missing = missing[first:] + missing[:first]
            found = [self._advance(shard) for shard in missing]  # each, whatever the others say
            if not any(found):
                time.sleep(_POLL_SECONDS)
                self._listed = self._list_url()
        for shard in set(range(len(self._shards))) - self._whole:
            self._turns.done(shard)  # merged before it was seen

    @property
    def is_complete(self) -> bool:
        """Whether all shards are whole."""
        return len(self._whole) == len(self._shards)

    def results(self) -> list[ScoredShard] | None:
        """All shards, or None if one was damaged since it was seen; that one is missing again."""
        shards = []
        for number in sorted(self._whole):
            shard = _read_shard(_file(self._folder, number))
            if shard is None:
                self._whole.remove(number)
            else:
                shards.append(shard)
        return shards if self.is_complete else None

    def _advance(self, shard: int) -> bool:
        """Finds the shard, or computes it if it is this process's turn. Whether it is whole now."""
        if self._is_merged():
            return False
        if not self._is_whole(shard):
            with _lock(_file(self._folder, shard).with_suffix(".lock")) as locked:
                # Another process may have written it, and even merged it, before we had the lock.
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
            self._listed = self._list_url()  # another machine may have brought it just now
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
            # Another machine computed the same shard and all were merged and removed meanwhile.
            if not self._is_merged():
                raise
        return True

    def _fetch(self, shard: int) -> bool:
        """Fetches the shard from the folder's URL, if another machine brought it there."""
        file = _file(self._folder, shard)
        if not self._is_listed(shard):
            return False
        mirror.fetch(file)
        return self._is_whole(shard)

    def _is_listed(self, shard: int) -> bool:
        return f"{SHARDS}/{_file(self._folder, shard).name}" in self._listed

    def _is_whole(self, shard: int) -> bool:
        return _read_content(_file(self._folder, shard)) is not None

    def _is_merged(self) -> bool:
        manifest = "manifest.json"
        return (self._folder / manifest).is_file() or manifest in self._listed

    def _list_url(self) -> Collection[str]:
        """The files of the folder's URL by relative path, if it has one."""
        return () if mirror.url(self._folder) is None else mirror.sizes(self._folder)


def remove_shards(folder: Path) -> None:
    """Removes what the pass left in a folder whose data is finished, and on its URL."""
    mirror.remove(folder / SHARDS)


def _file(folder: Path, shard: int) -> Path:
    return folder / SHARDS / f"{shard:04d}.json"


def _read_shard(file: Path) -> ScoredShard | None:
    content = _read_content(file)
    if content is None:
        return None
    return ScoredShard(**json.loads(content))


def _read_content(file: Path) -> str | None:
    """The text of a shard, or None if there is none or if it is not as it was written."""
    try:
        written, _, content = file.read_text(encoding="utf-8").partition("\n")
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    return content if _digest(content) == written else None


def _digest(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Whether this process has the lock; the death of the one that has it frees it."""
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
