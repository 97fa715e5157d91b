"""rows.jsonl of a planned folder, read row by row and cut into the shards of the reference pass.

The cut depends on the rows alone, not on devices or processes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dpo_train.data import Row

_FEWEST_SHARDS = 64
_FEWEST_PAIRS = 64
"""In a shard: fewer would be computed in batches that are not full."""
_MOST_PAIRS = 1024
"""In a shard: more would be too much to lose."""
_SIDES = ("prompt", "chosen", "rejected")


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a row stands in rows.jsonl, in bytes, and the characters of its longer side."""

    start: int
    size: int
    characters: int


class RowFile:
    """rows.jsonl, and its rows cut into shards. It keeps in memory where a row is, not the row:
    each process of a machine has one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: list[_Place] = []
        start = 0
        with path.open("rb") as lines:  # of bytes: texts from the web hold U+2028 and its like
            for line in lines:
                sides = json.loads(line)
                said = [sum(len(m["content"]) for m in sides[name]) for name in _SIDES]
                self._places.append(_Place(start, len(line), said[0] + max(said[1:])))
                start += len(line)
        order = sorted(
            range(len(self._places)), key=lambda row: (-self._places[row].characters, row)
        )
        # Rows of like length share a shard, so that no pass is spent on padding.
        size = min(max(len(order) // _FEWEST_SHARDS, _FEWEST_PAIRS), _MOST_PAIRS)
        self.shards = [order[first : first + size] for first in range(0, len(order), size)]

    def read(self, numbers: Sequence[int] | None = None) -> Iterator[tuple[str, Row]]:
        """The split and the row of each of these numbers, or of all in the file's order."""
        chosen = self._places if numbers is None else [self._places[n] for n in numbers]
        with self._path.open("rb") as file:
            for place in chosen:
                file.seek(place.start)
                row = json.loads(file.read(place.size))
                yield row.pop("split"), Row(**row)
