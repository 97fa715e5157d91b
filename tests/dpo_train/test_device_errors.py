"""Failures of a GPU are distinguished from lack of memory and from errors of a program."""

import pytest
import torch

from dpo_train.device_errors import device_failures_named, is_device_failure
from dpo_train.errors import DeviceFailed

FAILURES = [
    # Messages of an H200 after an assert on the device.
    torch.AcceleratorError("CUDA error: device-side assert triggered\nSearch for `cuda"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( handle`"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("Triton Error [CUDA]: misaligned address"),
    RuntimeError("CUDA error: uncorrectable ECC error encountered"),
]
OTHERS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("shape '[2]' is invalid for input of size 3"),
    ValueError("CUDA error"),
]


@pytest.mark.parametrize("error", FAILURES, ids=str)
def test_a_failure_of_the_device_is_known_and_named(error: Exception) -> None:
    assert is_device_failure(error)
    with pytest.raises(DeviceFailed, match="^the GPU failed: "), device_failures_named():
        raise error


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    assert not is_device_failure(error)
    with pytest.raises(type(error)) as raised, device_failures_named():
        raise error
    assert raised.value is error
