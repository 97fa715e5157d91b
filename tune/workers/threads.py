"""Limits torch's threads in a worker to the CPUs that Ray gave it, before anything computes."""

from __future__ import annotations


def limit_threads() -> None:
    """Limit torch to the CPUs that Ray gave: with more threads it is many times slower."""
    import ray  # the driver imports this file before it sets the variables that Ray's import reads
    import torch  # slow to import

    cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
    torch.set_num_threads(max(1, int(cpus)))


def node_cpus() -> float:
    """Return the CPUs of this worker's node, as Ray counts them."""
    import ray  # as above

    mine = ray.get_runtime_context().get_node_id()
    cpus = [node["Resources"].get("CPU", 1) for node in ray.nodes() if node["NodeID"] == mine]
    return float(max(1, *cpus))
