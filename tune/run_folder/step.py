"""What a trial did from one report to the next, and where, as its worker tells the driver."""

from __future__ import annotations

from dataclasses import dataclass

from tune.config.objective import Report
from tune.run_folder.held_out import HeldOut


@dataclass(frozen=True)
class Device:
    """A GPU of a node."""

    node: str
    """Ray's id of the node."""
    address: str
    """Where the node is."""
    gpu: str
    """Ray's id of the GPU, which is how CUDA_VISIBLE_DEVICES names it."""

    def __str__(self) -> str:
        return f"GPU {self.gpu} of {self.address}"


@dataclass(frozen=True)
class Step:
    report: Report
    began: float
    """Unix time."""
    seconds: float
    """How long it held its resources since the report before."""
    held_out: HeldOut | None = None
    """What each held-out pair had; None where the session measured no pairs."""
    reference_pairs: int = 0
    """Pairs whose reference log-probs its process computed since the report before."""
    micro_batch: int | None = None
    """Pairs that went through the model at once, if not a whole batch."""
    tokens_at_once: int = 0
    """The most tokens of a pass; 0 where they are not known."""
    note: str = ""
    """What a person should read about it; empty if there is nothing."""
    pairs_total: int = 0
    """Pairs until the trial's end; 0 where they are not known."""
    devices: tuple[Device, ...] = ()
    """The GPUs that it held; of several processes in the order of their ranks."""

    @property
    def gpus(self) -> str:
        """The GPUs as CUDA_VISIBLE_DEVICES names them."""
        return ",".join(device.gpu for device in self.devices)
