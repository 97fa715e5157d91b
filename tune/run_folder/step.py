"""Defines what a worker sends to the driver after a step: the trial's report, its cost and GPUs."""

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
    """The node's network address."""
    gpu: str
    """Ray's id of the GPU, which CUDA_VISIBLE_DEVICES also uses."""

    def __str__(self) -> str:
        return f"GPU {self.gpu} of {self.address}"


@dataclass(frozen=True)
class Step:
    """What a trial did from one report to the next."""

    report: Report
    began: float
    """Unix time of the step's start."""
    seconds: float
    """Time for which the trial held its resources since the previous report."""
    held_out: HeldOut | None = None
    """The values of each held-out pair; None if the session measured no pairs."""
    reference_pairs: int = 0
    """Pairs whose reference log-probs its process computed since the previous report."""
    micro_batch: int | None = None
    """Pairs that went through the model at once; None for a whole batch."""
    tokens_at_once: int = 0
    """The most tokens of a pass; 0 if that is not known."""
    note: str = ""
    """A message for the user; may be empty."""
    pairs_total: int = 0
    """Pairs until the trial's end; 0 if that is not known."""
    devices: tuple[Device, ...] = ()
    """The GPUs that the trial held; those of several processes are in the order of their ranks."""

    @property
    def gpus(self) -> str:
        """The GPUs in the form of CUDA_VISIBLE_DEVICES."""
        return ",".join(device.gpu for device in self.devices)
