"""The GPUs that Ray gave to a process, by which their failures are named; and a process that does
nothing but hold one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import ray

from dpo_train.device_errors import device_failures_named
from dpo_train.errors import DeviceFailed
from tune.errors import GpuFailed
from tune.run_folder.step import Device


def devices_here() -> tuple[Device, ...]:
    """The GPUs of this process, in Ray's order; empty on a CPU."""
    if not ray.is_initialized():
        return ()
    context = ray.get_runtime_context()
    node, address = context.get_node_id(), ray.util.get_node_ip_address()
    gpus = context.get_accelerator_ids().get("GPU", [])
    return tuple(Device(node, address, gpu) for gpu in gpus)


@contextmanager
def gpu_failures_named() -> Iterator[None]:
    """A failure of the GPU is raised as GpuFailed; as DeviceFailed where Ray gave no GPU."""
    try:
        with device_failures_named():
            yield
    except GpuFailed:
        raise  # by a member of a group, which has a GPU of its own
    except DeviceFailed as error:
        for device in devices_here():  # the first one is what a process computes on
            raise GpuFailed(
                device.node, device.address, device.gpu, error.reason, error.process
            ) from None
        raise


class Holder:
    """An actor that keeps its GPU from everybody else."""

    def devices(self) -> tuple[Device, ...]:
        return devices_here()
