"""Opens the session of a trial's trainer."""

from __future__ import annotations

from pathlib import Path

from dpo_train.config import TrainConfig
from dpo_train.memory import NO_BOUNDS, MemoryBounds
from dpo_train.trainers.process_group import SINGLE_PROCESS, ProcessGroup
from dpo_train.trainers.session import Session
from dpo_train.trainers.simulated import SimulatedSession


def open_session(
    config: TrainConfig,
    prepared: Path,
    device: str,
    process_group: ProcessGroup = SINGLE_PROCESS,
    memory: MemoryBounds = NO_BOUNDS,
) -> Session:
    """Open a session of the config's trainer over the prepared data in a folder.

    Its passes have no more tokens than fit into `memory`. Each process of a group opens a session
    with the same arguments except its rank, and all sessions are driven together.
    """
    if config.trainer == "simulated":
        return SimulatedSession(config)
    if config.trainer == "packed":
        from dpo_train.trainers.packed.session import PackedSession  # imports torch, slowly

        return PackedSession(config, prepared, device, memory)
    from dpo_train.trainers.trl_session import TrlSession  # imports torch and TRL, slowly

    return TrlSession(config, prepared, device, process_group, memory)
