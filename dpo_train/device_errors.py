"""Recognises errors that say that a GPU failed: the process can compute nothing more on it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from dpo_train.errors import DeviceFailed, one_line
from dpo_train.memory import is_out_of_memory

_DEVICE_ERROR = re.compile(
    r"CUDA error|HIP error|CU(BLAS|DNN|SOLVER|SPARSE)_STATUS_|Triton Error|NCCL error|"
    r"device-side assert|uncorrectable ECC"
)


def is_device_failure(error: BaseException) -> bool:
    """Return whether an error says that a GPU failed.

    It looks at the error's type, and for the words of torch, the CUDA libraries and Triton. Out of
    memory is no failure: a process goes on after it. A kernel that fails breaks its process for
    good (CUDA C++ Programming Guide, "Error Checking"): every later call fails with the same error,
    whichever trial makes it.
    """
    torch = sys.modules.get("torch")  # if torch was not imported, no GPU was used
    if torch is None or not isinstance(error, RuntimeError) or is_out_of_memory(error):
        return False
    return isinstance(error, torch.AcceleratorError) or bool(_DEVICE_ERROR.search(str(error)))


@contextmanager
def device_failures_named() -> Iterator[None]:
    """Raise a failure of the GPU as DeviceFailed, which every process can unpickle."""
    try:
        yield
    except Exception as error:
        if is_device_failure(error):
            raise DeviceFailed(one_line(error, 200), os.getpid()) from None
        raise
