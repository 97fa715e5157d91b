"""How many trials train best in one pass: found by trying.

It depends on device, model and rows: more share the cost of a pass's launches, too many no longer
fit the cache.
"""

from __future__ import annotations

from collections import defaultdict
from statistics import median

_BLOCK = 5
"""Steps of one size before the other has its turn, so that what else the machine does falls on
both. The first of them, which lays out the packs anew, is not counted."""
_BLOCKS = 6
_GAIN = 1.05
"""What half as many must gain in tokens a second to be preferred: less is noise."""


class PackSize:
    """Tries the least power of two that holds all trials against half of it, and goes on halving
    while that pays; tries again when there are more trials."""

    def __init__(self) -> None:
        self._most = 1
        self._step = _BLOCK * _BLOCKS
        self._seconds_a_token: defaultdict[int, list[float]] = defaultdict(list)
        self._tried_for = 1

    @property
    def is_trying(self) -> bool:
        """Whether `took` wants to know; until then seconds need not be measured."""
        return self._step < _BLOCK * _BLOCKS

    def of(self, trials: int) -> int:
        """How many go through the model together in the next step; packs are of like size."""
        if trials > self._tried_for:
            self._tried_for = self._most = 1 << (trials - 1).bit_length()
            self._begin()
        return -(-trials // -(-trials // self._size))

    def took(self, tokens: int, seconds: float) -> None:
        """What a step of the size last given took."""
        if self._step % _BLOCK:
            self._seconds_a_token[self._size].append(seconds / tokens)
        self._step += 1
        if self.is_trying:
            return
        whole, half = (
            median(self._seconds_a_token[size]) for size in (self._most, self._most // 2)
        )
        if half * _GAIN < whole:
            self._most //= 2
            if self._most > 1:
                self._begin()

    @property
    def _size(self) -> int:
        is_halfs_turn = self.is_trying and self._step // _BLOCK % 2 == 1
        return self._most // 2 if is_halfs_turn else self._most

    def _begin(self) -> None:
        self._step = 0
        self._seconds_a_token.clear()
