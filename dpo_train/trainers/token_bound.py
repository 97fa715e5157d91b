"""Bounds the tokens of a pass, so that what it keeps for its backward fits into memory."""

from __future__ import annotations

from dpo_train.memory import MemoryBounds, allocator_factor, own_bytes


class TokenBound:
    """The most tokens of the next pass: what fits into memory, and `most` at most.

    The bound is lowered for good when memory runs out all the same.
    """

    def __init__(self, device: str, bounds: MemoryBounds, weights_bytes: int, most: int) -> None:
        """weights_bytes: the base's weights, which all processes of a machine map once."""
        self._device = device
        self._bounds = bounds
        self._weights_bytes = weights_bytes
        self._own_bytes = own_bytes()
        self._bytes_a_token = 0.0
        """What a token of a pass keeps, times the allocator's factor."""
        self._fitting_beside: dict[int, int] = {}
        """The tokens that fit, by the bytes held beside the pass. The free memory of a GPU changes
        from step to step, so each number is computed once and passes stay the same."""
        self._most = min(most, bounds.most_tokens or most)

    def measured(self, kept_bytes: int, tokens: int, checkpointed: bool) -> None:
        """Records what a small first pass kept; of several passes the one that kept most counts.

        checkpointed: whether its layers are computed again in the backward.
        """
        factor = allocator_factor(self._device, checkpointed)
        self._bytes_a_token = max(self._bytes_a_token, factor * kept_bytes / tokens)
        self._fitting_beside.clear()

    def tokens(self, least: int, other_bytes: int = 0) -> int:
        """Returns the most tokens of the next pass, and `least` at least.

        other_bytes: what will be held beside the pass but may not be held yet, as weights,
        gradients and moments of the trials.
        """
        fitting = self._fitting_beside.get(other_bytes)
        if fitting is None:
            fitting = self._fitting(other_bytes, self._most)
            self._fitting_beside[other_bytes] = fitting
        return max(least, min(self._most, fitting))

    def forget_measured(self) -> None:
        """Forgets all measurements, because passes will keep less per token from now on."""
        self._bytes_a_token = 0.0
        self._fitting_beside.clear()

    def holds(self, tokens: int, other_bytes: int = 0) -> bool:
        """Returns whether a pass of this many tokens fits beside `other_bytes`."""
        allowed = self._bounds.most_tokens or tokens
        return min(allowed, self._fitting(other_bytes, at_most=tokens)) >= tokens

    def halve(self, now: int) -> None:
        """Lowers the bound after a pass of `now` tokens has run out of memory."""
        self._most = now // 2

    def _fitting(self, other_bytes: int, at_most: int) -> int:
        """Returns the tokens that fit beside `other_bytes`, or `at_most` if nothing bounds them."""
        free = self._free_bytes(other_bytes)
        if free is None or not self._bytes_a_token:
            return at_most
        return max(0, int(free / self._bytes_a_token))

    def _free_bytes(self, other_bytes: int) -> int | None:
        """Returns the memory that a pass may take; None on a CPU without a bound."""
        if self._device == "cuda":
            import torch  # slow to import

            free, total = torch.cuda.mem_get_info()
            cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
            share = int(self._bounds.device_share * total) - torch.cuda.memory_allocated()
            return min(int(0.95 * (free + cached)), share) - other_bytes
        if self._bounds.host_bytes is None:
            return None
        share = (self._bounds.host_bytes - self._weights_bytes) // self._bounds.processes
        return share - self._own_bytes - other_bytes
