"""The coordinator of a search: one actor that knows the trials' engines, what each trial is doing,
and which should stop.

An actor dies with the process that made it, so the driver owns the coordinator, and the coordinator
owns the engines.
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
"""The actor's threads. A trial that waits for its engine must not block the others' messages."""


class Coordinator(Broker, LiveState):
    """The broker of engines and the live state, for all processes of a search."""

    def __init__(self, most_trials: int) -> None:
        Broker.__init__(self, most_trials)
        LiveState.__init__(self)


@contextmanager
def coordinated(config: SearchConfig, prepared: str) -> Iterator[Any]:
    """Start a search's coordinator, and end it and all engines at the end."""
    # Only this driver's actors see the name. The search must not end because another node died, so
    # the actor is on the driver's node. Ray's memory monitor may end it, so Ray restarts it.
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
        # Engines take seconds to import and prepare, so they start while Tune starts the trials.
        opening = Opening(config.base_trial(), mirror.local(prepared), config.device)
        coordinator.open_ahead.remote(nodes[0]["NodeID"], config.total_trials, opening)
    try:
        yield coordinator
    finally:
        ray.kill(coordinator)
