"""Finds by trying how many trials train fastest in one pass.

That depends on device, model and rows: more trials share the cost of a pass's kernel launches, but
too many no longer fit the cache.
"""

from __future__ import annotations

from collections import defaultdict
from statistics import median

_BLOCK = 5
"""Steps of one size before the other size has its turn. The machine does other work meanwhile, so
the sizes take turns to share it. The first step of a block makes new packs and is not counted."""
_BLOCKS = 6
"""Blocks of one comparison, half of them of either size."""
_GAIN = 1.05
"""The smaller size must be this many times as fast to be preferred; less may be noise."""


class PackSize:
    """Compares two pack sizes: the least power of two that holds all trials, and half of it.

    It goes on halving while that is faster, and begins again when there are more trials.
    """

    def __init__(self) -> None:
        self._most = 1
        self._step = _BLOCK * _BLOCKS
        self._seconds_a_token: defaultdict[int, list[float]] = defaultdict(list)
        self._tried_for = 1

    @property
    def is_trying(self) -> bool:
        """Whether `record_step` needs the seconds of the next step."""
        return self._step < _BLOCK * _BLOCKS

    def trials_per_pass(self, trials: int) -> int:
        """Returns how many of `trials` share a pass in the next step, in packs of similar size."""
        if trials > self._tried_for:
            self._tried_for = self._most = 1 << (trials - 1).bit_length()
            self._begin()
        return -(-trials // -(-trials // self._size))

    def record_step(self, tokens: int, seconds: float) -> None:
        """Records how long a step took, with the size that `trials_per_pass` returned last."""
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
