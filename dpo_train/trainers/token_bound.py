"""Bounds the tokens of a pass, so that what it keeps for its backward fits into memory."""

from __future__ import annotations

from dpo_train.memory import MemoryBounds, allocator_factor, own_bytes


class TokenBound:
    """The most tokens of the next pass: what memory holds, between a least and a most number.

    The bound is lowered permanently if memory still runs out.
    """

    def __init__(self, device: str, bounds: MemoryBounds, weights_bytes: int, most: int) -> None:
        """Set the bounds of a device, with at most `most` tokens.

        `weights_bytes` are those of the base, which all processes of a machine share.
        """
        self._device = device
        self._bounds = bounds
        self._weights_bytes = weights_bytes
        self._own_bytes = own_bytes()
        self._bytes_a_token = 0.0
        """Bytes that a token takes, including the overhead of the allocator."""
        self._fitting_beside: dict[int, int] = {}
        """The tokens that fit, by the bytes held beside a pass. They are computed once, so that
        passes don't vary from step to step with a GPU's free memory."""
        self._most = min(most, bounds.most_tokens or most)

    def measured(self, kept_bytes: int, tokens: int, checkpointed: bool) -> None:
        """Take note of what a first small pass kept. If there are several, the largest counts."""
        factor = allocator_factor(self._device, checkpointed)
        self._bytes_a_token = max(self._bytes_a_token, factor * kept_bytes / tokens)
        self._fitting_beside.clear()

    def tokens(self, least: int, other_bytes: int = 0) -> int:
        """Return the tokens of the next pass, at least `least`.

        `other_bytes` will be held beside the pass and are not yet, or come and go with the trials:
        weights, gradients, moments.
        """
        fitting = self._fitting_beside.get(other_bytes)
        if fitting is None:
            fitting = self._fitting(other_bytes, self._most)
            self._fitting_beside[other_bytes] = fitting
        return max(least, min(self._most, fitting))

    def forget_measured(self) -> None:
        """Forget the measured bytes per token, before a change that makes passes keep less."""
        self._bytes_a_token = 0.0
        self._fitting_beside.clear()

    def holds(self, tokens: int, other_bytes: int = 0) -> bool:
        """Return whether a pass of so many tokens fits beside `other_bytes`; see `tokens`."""
        allowed = self._bounds.most_tokens or tokens
        return min(allowed, self._fitting(other_bytes, at_most=tokens)) >= tokens

    def halve(self, now: int) -> None:
        """Lower the bound to half of `now`, after a pass of `now` tokens ran out of memory."""
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
