"""Torch's threads in a worker: as many as Ray gave it CPUs, set before anything computes."""

from __future__ import annotations


def limit_threads() -> None:
    """More torch threads than the CPUs that Ray gave are many times slower, not a little."""
    import ray  # the driver imports this file before it sets what Ray reads when it is imported
    import torch  # slow to import

    cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
    torch.set_num_threads(max(1, int(cpus)))


def node_cpus() -> float:
    """The CPUs of this worker's node, as Ray counts them."""
    import ray  # as above

    mine = ray.get_runtime_context().get_node_id()
    cpus = [node["Resources"].get("CPU", 1) for node in ray.nodes() if node["NodeID"] == mine]
    return float(max(1, *cpus))
