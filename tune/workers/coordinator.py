"""The one actor beside a search's trials: it knows their engines, what they do and who should stop.

An actor dies with the one that made it, so the driver owns this one, and this one the engines.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dpo_train.storage import mirror
from tune.config.schema import SearchConfig
from tune.workers.engine_actor import Opening
from tune.workers.engine_broker import Broker
from tune.workers.live_state import LiveState
from tune.workers.pulse import COORDINATOR

_THREADS = 32
"""A trial that waits for its engine must not keep another from saying what it does."""


class Coordinator(Broker, LiveState):
    """The methods of both, for all processes of a search."""

    def __init__(self, engines_a_node: int) -> None:
        Broker.__init__(self, engines_a_node)
        LiveState.__init__(self)


@contextmanager
def coordinated(config: SearchConfig, prepared: str) -> Iterator[Any]:
    """A search's coordinator; with it all engines end."""
    # A name is known to this driver's own actors alone. Beside the driver: the search must not
    # end with some other node. Ray's memory monitor may end it, and then it starts again.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {
        "name": COORDINATOR,
        "num_cpus": 0,
        "max_concurrency": _THREADS,
        "max_restarts": -1,
        "scheduling_strategy": here,
    }
    most = min(config.resources.at_once or config.total_trials, config.total_trials)
    coordinator = ray.remote(Coordinator).options(**options).remote(most)
    nodes = ray.nodes()
    if config.trainer == "packed" and config.device == "cpu" and len(nodes) == 1:
        # The engines import and prepare while Tune starts the trials' processes.
        opening = Opening(config.base_trial(), mirror.local(prepared), config.device)
        coordinator.open_ahead.remote(nodes[0]["NodeID"], config.total_trials, opening)
    try:
        yield coordinator
    finally:
        ray.kill(coordinator)
