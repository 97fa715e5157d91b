"""The errors that only a search raises. Their root, DpoError, is in `dpo_train/errors.py`.

DpoError
  InputError (ValueError)
    Unreachable
  Interrupted
  SearchAborted
  DeviceFailed
    GpuFailed
  EngineLost
    EngineOutOfMemory
  PushFailed
"""

from __future__ import annotations

from pathlib import Path

from dpo_train.command_line import dpo_tune
from dpo_train.errors import DeviceFailed, DpoError, InputError
from dpo_train.storage import mirror


class Unreachable(InputError):
    """The Hub did not answer, for a reason that may pass."""


class Interrupted(DpoError):
    """The search was interrupted. The message says why, and how to continue it."""

    def __init__(self, folder: Path, reason: str = "interrupted") -> None:
        super().__init__(folder, reason)
        self.folder, self.reason = folder, reason

    def __str__(self) -> str:
        return f"{self.reason}; to go on: {dpo_tune('resume', mirror.name(self.folder))}"


class SearchAborted(DpoError):
    """The driver session must end early. The message says why."""


class GpuFailed(DeviceFailed):
    """A GPU that Ray gave to a trial failed. The message names the GPU and its node."""

    def __init__(self, node: str, address: str, gpu: str, reason: str, process: int = 0) -> None:
        """`node` and `gpu` are Ray's ids; `address` is the node's IP address."""
        super().__init__(reason, process)
        self.args = (node, address, gpu, reason, process)
        self.node, self.address, self.gpu = node, address, gpu

    def __str__(self) -> str:
        return f"GPU {self.gpu} of {self.address} failed: {self.reason}"


class EngineLost(DpoError):
    """The engine's process died. Its trials continue from their saved states in a new one."""


class EngineOutOfMemory(EngineLost):
    """The engine ran out of memory: the kernel or Ray's memory monitor ended its process."""


class PushFailed(DpoError):
    """The winner was not pushed; its files are unchanged. The message ends with what to type."""
