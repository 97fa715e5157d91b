"""Processes that train one trial together, each on a device of its own, by torch.distributed."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class ProcessGroup:
    """One process's place among them."""

    rank: int = 0
    count: int = 1
    host: str = ""
    """Where rank 0 listens, and on which port."""
    port: int = 0
    sharded: bool = False
    """Whether weights, gradients and optimizer are shared out among them (FSDP2); else each holds a
    copy and the gradients are averaged (DDP)."""

    def join(self) -> None:
        """Tells accelerate, which meets the others when the first trainer is made. Each process
        sees its own device alone, so its local rank is 0."""
        if self.count > 1:
            os.environ |= {
                "RANK": str(self.rank),
                "WORLD_SIZE": str(self.count),
                "LOCAL_RANK": "0",
                "MASTER_ADDR": self.host,
                "MASTER_PORT": str(self.port),
            }


SINGLE_PROCESS = ProcessGroup()
