"""Processes that train one trial together with torch.distributed, each on its own device."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class ProcessGroup:
    """One process of a group, and how it reaches the others."""

    rank: int = 0
    count: int = 1
    """The number of processes."""
    host: str = ""
    """The host on which rank 0 listens."""
    port: int = 0
    """The port on which rank 0 listens."""
    sharded: bool = False
    """Whether weights, gradients and optimizer are sharded over the processes (FSDP2). Otherwise
    each holds a copy, and the gradients are averaged (DDP)."""

    def join(self) -> None:
        """Set the environment variables by which accelerate joins the group at the first trainer.

        Each process sees only its own device, so its local rank is 0.
        """
        if self.count > 1:
            os.environ |= {
                "RANK": str(self.rank),
                "WORLD_SIZE": str(self.count),
                "LOCAL_RANK": "0",
                "MASTER_ADDR": self.host,
                "MASTER_PORT": str(self.port),
            }


SINGLE_PROCESS = ProcessGroup()
