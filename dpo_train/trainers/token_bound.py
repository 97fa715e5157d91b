"""How many tokens a pass may have, so that what it keeps for its backward fits into memory."""

from __future__ import annotations

from dpo_train.memory import MemoryBounds, allocator_factor, own_bytes


class TokenBound:
    """The tokens of the next pass: at most `most`, at least `least`, between them what the memory
    holds. It is lowered for good when memory runs out all the same."""

    def __init__(self, device: str, bounds: MemoryBounds, weights_bytes: int, most: int) -> None:
        """`weights_bytes`: those of the base, which all processes of a machine map once."""
        self._device = device
        self._bounds = bounds
        self._weights_bytes = weights_bytes
        self._own_bytes = own_bytes()
        self._bytes_a_token = 0.0
        """What a token takes, with what the allocator holds around it."""
        self._fitting_beside: dict[int, int] = {}
        """By the bytes held beside a pass: found once, so that passes don't change from step to
        step with what a GPU happens to have free."""
        self._most = min(most, bounds.most_tokens or most)

    def measured(self, kept_bytes: int, tokens: int, checkpointed: bool) -> None:
        """Takes note of what a first small pass kept; of several the one that kept most counts."""
        factor = allocator_factor(self._device, checkpointed)
        self._bytes_a_token = max(self._bytes_a_token, factor * kept_bytes / tokens)
        self._fitting_beside.clear()

    def tokens(self, least: int, other_bytes: int = 0) -> int:
        """`other_bytes`: what will be held beside the pass and isn't yet, or comes and goes with
        the trials: weights, gradients, moments."""
        fitting = self._fitting_beside.get(other_bytes)
        if fitting is None:
            fitting = self._fitting(other_bytes, self._most)
            self._fitting_beside[other_bytes] = fitting
        return max(least, min(self._most, fitting))

    def forget_measured(self) -> None:
        """Before passes keep less a token than they did."""
        self._bytes_a_token = 0.0
        self._fitting_beside.clear()

    def holds(self, tokens: int, other_bytes: int = 0) -> bool:
        """Whether a pass of so many tokens fits, beside `other_bytes` as in `tokens`."""
        allowed = self._bounds.most_tokens or tokens
        return min(allowed, self._fitting(other_bytes, at_most=tokens)) >= tokens

    def halve(self, now: int) -> None:
        """After a pass of `now` tokens ran out of memory."""
        self._most = now // 2

    def _fitting(self, other_bytes: int, at_most: int) -> int:
        free = self._free_bytes(other_bytes)
        if free is None or not self._bytes_a_token:
            return at_most
        return max(0, int(free / self._bytes_a_token))

    def _free_bytes(self, other_bytes: int) -> int | None:
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
