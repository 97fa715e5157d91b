"""The errors that only a search raises, under the root that `dpo_train/errors.py` has.

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
    """The Hub could not be asked, for a reason that may pass."""


class Interrupted(DpoError):
    """The search was interrupted. The message says why and how it goes on."""

    def __init__(self, folder: Path, reason: str = "interrupted") -> None:
        super().__init__(folder, reason)
        self.folder, self.reason = folder, reason

    def __str__(self) -> str:
        return f"{self.reason}; to go on: {dpo_tune('resume', mirror.name(self.folder))}"


class SearchAborted(DpoError):
    """The driver session ends early. The message says why."""


class GpuFailed(DeviceFailed):
    """A GPU failed that Ray gave to a trial. The message says which one, of which node."""

    def __init__(self, node: str, address: str, gpu: str, reason: str, process: int = 0) -> None:
        """`node`: Ray's id of the node; `address`: where the node is; `gpu`: Ray's id of the
        GPU."""
        super().__init__(reason, process)
        self.args = (node, address, gpu, reason, process)
        self.node, self.address, self.gpu = node, address, gpu

    def __str__(self) -> str:
        return f"GPU {self.gpu} of {self.address} failed: {self.reason}"


class EngineLost(DpoError):
    """The engine's process died. Its trials go on from their saved states in a new one."""


class EngineOutOfMemory(EngineLost):
    """It died because memory ran out: the kernel or Ray's memory monitor ended it."""


class PushFailed(DpoError):
    """The winner was not pushed and lies where it was. The message ends with what to type."""
