"""The GPUs that Ray gave to a process: names them in errors, and holds a broken one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import ray

from dpo_train.device_errors import device_failures_named
from dpo_train.errors import DeviceFailed
from tune.errors import GpuFailed
from tune.run_folder.step import Device


def devices_here() -> tuple[Device, ...]:
    """Return the GPUs of this process, in Ray's order; empty on a CPU."""
    if not ray.is_initialized():
        return ()
    context = ray.get_runtime_context()
    node, address = context.get_node_id(), ray.util.get_node_ip_address()
    gpus = context.get_accelerator_ids().get("GPU", [])
    return tuple(Device(node, address, gpu) for gpu in gpus)


@contextmanager
def gpu_failures_named() -> Iterator[None]:
    """Raise a failure of the GPU as GpuFailed; as DeviceFailed if Ray gave no GPU."""
    try:
        with device_failures_named():
            yield
    except GpuFailed:
        raise  # a member of a group raised it, and has named its own GPU
    except DeviceFailed as error:
        for device in devices_here():  # a process computes on its first GPU
            raise GpuFailed(
                device.node, device.address, device.gpu, error.reason, error.process
            ) from None
        raise


class Holder:
    """An actor that keeps its GPU from everybody else."""

    def devices(self) -> tuple[Device, ...]:
        """Return the GPUs of this actor."""
        return devices_here()
