"""The interface of one trial's training, driven from outside, evaluation by evaluation."""

from pathlib import Path
from typing import Protocol

from dpo_train.config import TrainConfig
from dpo_train.config_base import override
from dpo_train.errors import InputError


class Session(Protocol):
    """One trial in training. `advance` after the last evaluation is an error of the caller."""

    pairs_total: int
    """Pairs that the whole trial trains on; the last evaluation has pairs_seen equal to it."""

    reference_pairs: int
    """Pairs whose reference log-probs were computed as it opened."""

    held_out: dict[str, list[float]]
    """At the last evaluation each metric's value for each held-out pair, in the order of the
    prepared rows; their mean is what was reported. By it two trials are compared pair by pair."""

    def advance(self) -> dict[str, float]:
        """Trains to the next evaluation and returns its metrics. Raises Diverged for a loss that is
        no number, and OutOfMemory, after which the session can only be closed."""
        ...

    def save(self, folder: Path) -> None:
        """Writes what going on needs: weights, optimizer, schedule, data order, random state."""
        ...

    def restore(self, folder: Path) -> None:
        """Goes on from a saved folder; only before the first `advance`."""
        ...

    def export(self, folder: Path) -> None:
        """Writes the weights as a folder that can be served."""
        ...

    def close(self) -> None:
        """Frees the device; the process stays warm for the next trial."""
        ...


class Diverged(ArithmeticError):
    """The training loss became NaN or infinite. The message names step and learning rate."""


def diverged(loss: float, step: int, learning_rate: float) -> Diverged:
    """The error, which travels between processes by its message alone."""
    return Diverged(f"loss is {loss:g} at step {step}, learning rate {learning_rate:g}")


class OutOfMemory(MemoryError):
    """There was no memory for so many pairs at once."""


def is_out_of_memory(error: BaseException) -> bool:
    """A GPU's allocator has an error of its own, the CPU's a RuntimeError with these words."""
    import torch  # slow to import

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def with_less_at_once(config: TrainConfig, members: int = 1) -> TrainConfig:
    """The same trial with half as many pairs at once and the same batch; at once are those of all
    members together, each of which has at least one.

    Raises OutOfMemory, saying why, if there is no less.
    """
    at_once = config.optim.pairs_at_once
    if at_once < 2 * members:
        raise OutOfMemory("out of memory with one pair at once")
    try:
        return override(config, {"optim.micro_batch_size": at_once // 2})
    except InputError:  # its loss couples the rows of a batch
        raise OutOfMemory(
            f"out of memory with a batch of {at_once}, which {', '.join(config.dpo.losses)} does "
            "not allow to be split; lower optim.batch_size"
        ) from None
