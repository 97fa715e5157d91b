"""The interface of one trial's training, which a caller drives from evaluation to evaluation."""

from pathlib import Path
from typing import Protocol

from dpo_train.config import TrainConfig
from dpo_train.config_base import override
from dpo_train.errors import Diverged, InputError, OutOfMemory
from dpo_train.scoring.evaluation import Evaluation


class Session(Protocol):
    """One trial in training. The caller must not call `advance` after the last evaluation."""

    pairs_total: int
    """Pairs that the whole trial trains on. The last evaluation's pairs_seen is equal to it."""

    reference_pairs: int
    """Pairs whose reference log-probs were computed when the session opened."""

    @property
    def pairs_done(self) -> int:
        """Pairs whose gradients are computed, including those of an unfinished step."""
        ...

    @property
    def pairs_at_once(self) -> int:
        """Pairs that go through the model in one pass: as configured, or fewer if memory is
        short."""
        ...

    @property
    def tokens_at_once(self) -> int:
        """The most tokens of a pass, with padding; 0 if unknown."""
        ...

    def advance(self) -> Evaluation:
        """Train to the next evaluation, and return it.

        Raises Diverged if the loss is not finite, and OutOfMemory. After either the session can
        only be closed.
        """
        ...

    def advance_for(self, seconds: float) -> Evaluation | None:
        """Train like `advance`, but return None if there is no evaluation within `seconds`.

        The training may go on until the next call of any method.
        """
        ...

    def save(self, folder: Path) -> int:
        """Write all that is needed to go on: weights, optimizer, schedule, data order, random
        state, and the sums since the last evaluation.

        Returns the pairs_seen of the saved state, after a whole number of steps. Returns 0 and
        writes nothing if an evaluation came first, which the next `advance` returns.
        """
        ...

    def restore(self, folder: Path) -> None:
        """Go on from a saved folder. It may be called only before the first `advance`."""
        ...

    def export(self, folder: Path) -> None:
        """Write the weights as a folder that can be served. It may be called only right after an
        evaluation."""
        ...

    def close(self) -> None:
        """Free the device. The process keeps the base for the next trial."""
        ...


def diverged(loss: float, step: int, learning_rate: float) -> Diverged:
    """Return the error for a loss that is not finite."""
    return Diverged(f"loss is {loss:g} at step {step}, learning rate {learning_rate:g}")


def with_less_at_once(config: TrainConfig, members: int = 1) -> TrainConfig:
    """Return the config with half as many pairs at once, or else with activation checkpointing.

    The batch stays the same. Pairs at once are those of all members of a group together, and each
    has at least one. Raises OutOfMemory, with a remedy, if a pass can't be smaller.
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
    """Return the message of OutOfMemory if a pass can't be smaller than one pair."""
    remedy = "take optim.activation_checkpointing: false out"
    if checkpointing:
        remedy = "lower data.max_length_tokens"
    return f"out of memory with one pair at once; {remedy}"


def fewest_pairs_at_once(config: TrainConfig, members: int = 1) -> int:
    """Return the fewest pairs of a pass that the loss allows, of all members together."""
    try:
        return with_pairs_at_once(config, members, members).optim.pairs_at_once
    except OutOfMemory:
        return config.optim.batch_size


def with_pairs_at_once(config: TrainConfig, pairs: int, members: int = 1) -> TrainConfig:
    """Return the config with at most `pairs` at once, and at least one for each member.

    Raises OutOfMemory, with a remedy, if the loss does not allow it.
    """
    try:
        return override(config, {"optim.micro_batch_size": max(pairs, members)})
    except InputError:  # the loss needs all pairs of a batch at once
        at_once = config.optim.pairs_at_once
        raise OutOfMemory(
            f"out of memory with a batch of {at_once} pairs, which the loss "
            f"{', '.join(config.dpo.losses)} does not allow to be split; lower optim.batch_size"
        ) from None
