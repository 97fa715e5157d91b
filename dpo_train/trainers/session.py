"""The interface of one trial's training, driven from outside, evaluation by evaluation."""

from pathlib import Path
from typing import Protocol

from dpo_train.config import TrainConfig
from dpo_train.config_base import override
from dpo_train.errors import Diverged, InputError, OutOfMemory
from dpo_train.scoring.evaluation import Evaluation


class Session(Protocol):
    """One trial in training. `advance` after the last evaluation is an error of the caller."""

    pairs_total: int
    """Pairs that the whole trial trains on; the last evaluation has pairs_seen equal to it."""

    reference_pairs: int
    """Pairs whose reference log-probs were computed as it opened."""

    @property
    def pairs_done(self) -> int:
        """Pairs whose gradients it has computed by now, also those of a step that isn't
        complete."""
        ...

    @property
    def pairs_at_once(self) -> int:
        """Pairs of a batch that go through the model in one pass: as many as the configuration
        says, or fewer where memory holds no more."""
        ...

    @property
    def tokens_at_once(self) -> int:
        """The most tokens of a pass, with padding; 0 where they aren't known."""
        ...

    def advance(self) -> Evaluation:
        """Trains to the next evaluation and returns it. Raises Diverged for a loss that is
        no number, and OutOfMemory, after which the session can only be closed."""
        ...

    def advance_for(self, seconds: float) -> Evaluation | None:
        """Does the same for so long at most: returns None if there was no evaluation by then. The
        training may go on until the next call of any method."""
        ...

    def save(self, folder: Path) -> int:
        """Writes what going on needs: weights, optimizer, schedule, data order, random state, and
        what was summed up since the last evaluation.

        Returns the pairs_seen of what it wrote, a whole number of steps. Returns 0 and writes
        nothing if an evaluation came first, which the next `advance` returns.
        """
        ...

    def restore(self, folder: Path) -> None:
        """Goes on from a saved folder; only before the first `advance`."""
        ...

    def export(self, folder: Path) -> None:
        """Writes the weights as a folder that can be served; only right after an evaluation."""
        ...

    def close(self) -> None:
        """Frees the device; the process stays warm for the next trial."""
        ...


def diverged(loss: float, step: int, learning_rate: float) -> Diverged:
    """The error, which travels between processes by its message alone."""
    return Diverged(f"loss is {loss:g} at step {step}, learning rate {learning_rate:g}")


def with_less_at_once(config: TrainConfig, members: int = 1) -> TrainConfig:
    """The same trial with half as many pairs at once and the same batch, or with activation
    checkpointing where there is no half. At once are those of all members together, each of which
    has at least one.

    Raises OutOfMemory, saying why, if there is no less.
    """
    at_once, checkpointing = config.optim.pairs_at_once, config.optim.activation_checkpointing
    if at_once >= 2 * members:
        try:
            return with_pairs_at_once(config, at_once // 2, members)
        except OutOfMemory:
            if checkpointing is not None:
                raise
    if checkpointing is None:
        return override(config, {"optim.activation_checkpointing": True})
    raise OutOfMemory(one_pair_too_much(checkpointing))


def one_pair_too_much(checkpointing: bool) -> str:
    """What OutOfMemory says where no pass can be smaller."""
    remedy = "take optim.activation_checkpointing: false out"
    if checkpointing:
        remedy = "lower data.max_length_tokens"
    return f"out of memory with one pair at once; {remedy}"


def fewest_pairs_at_once(config: TrainConfig, members: int = 1) -> int:
    """The pairs of the smallest pass that the trial's loss allows, of all members together."""
    try:
        return with_pairs_at_once(config, members, members).optim.pairs_at_once
    except OutOfMemory:
        return config.optim.batch_size


def with_pairs_at_once(config: TrainConfig, pairs: int, members: int = 1) -> TrainConfig:
    """The same trial with at most so many pairs at once, at least one for each member.

    Raises OutOfMemory, saying why, if its loss does not allow it.
    """
    try:
        return override(config, {"optim.micro_batch_size": max(pairs, members)})
    except InputError:  # its loss couples the rows of a batch
        at_once = config.optim.pairs_at_once
        raise OutOfMemory(
            f"out of memory with a batch of {at_once} pairs, which the loss "
            f"{', '.join(config.dpo.losses)} does not allow to be split; lower optim.batch_size"
        ) from None
