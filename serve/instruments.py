"""Makes counters and histograms, for a single process or for a replica of Ray Serve.

Nothing is summed here: Prometheus sums the values that it scrapes from each process or node.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

PREFIX = "dpo_tune_serve_"

Record = Callable[..., None]
"""A function that records a value; each label is a keyword argument."""


class LocalInstruments:
    """The instruments of a single server process.

    Names have no PREFIX, and each record must give all labels.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()

    def counter(self, name: str, description: str, labels: tuple[str, ...]) -> Record:
        """Returns the function that adds to a new counter."""
        counter = Counter(PREFIX + name, description, labels, registry=self._registry)
        return lambda value, **given: counter.labels(**given).inc(value)

    def histogram(
        self, name: str, description: str, labels: tuple[str, ...], bounds: list[float]
    ) -> Record:
        """Returns the function that records a value in a new histogram."""
        histogram = Histogram(
            PREFIX + name, description, labels, buckets=bounds, registry=self._registry
        )
        return lambda value, **given: histogram.labels(**given).observe(value)

    def read(self) -> bytes:
        """Returns all values in the text format of Prometheus."""
        return generate_latest(self._registry)


class RayInstruments:
    """The instruments of a replica of Ray Serve, with the methods of LocalInstruments.

    Ray's agent on each node exports them, with `ray_` before each name and a label for the replica.
    """

    def counter(self, name: str, description: str, labels: tuple[str, ...]) -> Record:
        """Returns the function that adds to a new counter."""
        # A single process starts a second sooner without Ray, so Ray is imported late.
        from ray.util.metrics import Counter

        counter = Counter(PREFIX + name, description, labels)
        return lambda value, **given: counter.inc(value, given) if value else None  # 0 is refused

    def histogram(
        self, name: str, description: str, labels: tuple[str, ...], bounds: list[float]
    ) -> Record:
        """Returns the function that records a value in a new histogram."""
        from ray.util.metrics import Histogram  # late, as in `counter`

        histogram = Histogram(PREFIX + name, description, bounds, labels)
        return lambda value, **given: histogram.observe(value, given)


Instruments = LocalInstruments | RayInstruments
