"""These are the counters and histograms of a server, as one process or a replica of Ray has them.

Nothing is added up here: Prometheus adds up what it scrapes of each process or node.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

PREFIX = "dpo_tune_serve_"

Record = Callable[..., None]
"""It is called with a value and a keyword for each label."""


class LocalInstruments:
    """The instruments of one process that answers alone.

    Names are given without PREFIX, and every label is given at every record.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()

    def counter(self, name: str, description: str, labels: tuple[str, ...]) -> Record:
        counter = Counter(PREFIX + name, description, labels, registry=self._registry)
        return lambda value, **given: counter.labels(**given).inc(value)

    def histogram(
        self, name: str, description: str, labels: tuple[str, ...], bounds: list[float]
    ) -> Record:
        histogram = Histogram(
            PREFIX + name, description, labels, buckets=bounds, registry=self._registry
        )
        return lambda value, **given: histogram.labels(**given).observe(value)

    def read(self) -> bytes:
        """Returns all values in Prometheus' text format."""
        return generate_latest(self._registry)


class RayInstruments:
    """The same for a replica of Ray Serve.

    Ray's agent on each node exports them, with `ray_` before each name and a label that tells the
    replicas apart.
    """

    def counter(self, name: str, description: str, labels: tuple[str, ...]) -> Record:
        # A process that answers alone starts a second sooner without Ray.
        from ray.util.metrics import Counter

        counter = Counter(PREFIX + name, description, labels)
        return lambda value, **given: counter.inc(value, given) if value else None  # 0 is refused

    def histogram(
        self, name: str, description: str, labels: tuple[str, ...], bounds: list[float]
    ) -> Record:
        from ray.util.metrics import Histogram  # late, as in `counter`

        histogram = Histogram(PREFIX + name, description, bounds, labels)
        return lambda value, **given: histogram.observe(value, given)


Instruments = LocalInstruments | RayInstruments
