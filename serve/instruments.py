"""These are the counters and histograms behind `/metrics`, of this process or of all replicas.

Each replica counts for itself by Ray's own metrics. Ray's agent on each node gathers them every ten
seconds, and reading adds up what the nodes have. Ray 2.60 exports no gauges that an actor sets.
"""

from __future__ import annotations

import http.client
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

PREFIX = "dpo_tune_serve_"
_RAY_PREFIX = "ray_"
"""Ray puts it before every name."""
_AGENT_TIMEOUT = 5.0
"""A node's agent has so many seconds to answer."""

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
    """The same for a replica of Ray Serve. What is read is the sum over all replicas."""

    def __init__(self) -> None:
        self._labels: set[str] = {"le"}
        """The labels that are ours. Ray's own say which process it was."""

    def counter(self, name: str, description: str, labels: tuple[str, ...]) -> Record:
        # A process that answers alone starts a second sooner without Ray.
        from ray.util.metrics import Counter

        self._labels.update(labels)
        counter = Counter(PREFIX + name, description, labels)
        return lambda value, **given: counter.inc(value, given) if value else None  # 0 is refused

    def histogram(
        self, name: str, description: str, labels: tuple[str, ...], bounds: list[float]
    ) -> Record:
        from ray.util.metrics import Histogram  # late, as in `counter`

        self._labels.update(labels)
        histogram = Histogram(PREFIX + name, description, bounds, labels)
        return lambda value, **given: histogram.observe(value, given)

    def read(self) -> bytes:
        """Returns all values in Prometheus' text format. Raises OSError."""
        return _add_up(_read_nodes(), self._labels)


Instruments = LocalInstruments | RayInstruments


class _SummedMetrics(Collector):
    """A collector of prometheus_client, over sums by name, documentation and type."""

    def __init__(self, sums: dict[tuple[str, str, str], dict[Any, float]]) -> None:
        self._sums = sums

    def collect(self) -> Iterator[Metric]:
        for key, samples in self._sums.items():
            metric = Metric(*key)
            for (name, labels), value in samples.items():
                metric.add_sample(name, dict(labels), value)
            yield metric


def _add_up(texts: Iterable[str], known_labels: set[str]) -> bytes:
    """Returns our metrics of what several nodes export, summed over processes and nodes."""
    sums: dict[tuple[str, str, str], dict[Any, float]] = {}
    for text in texts:
        for family in text_string_to_metric_families(text):
            if not family.name.startswith(_RAY_PREFIX + PREFIX):
                continue
            key = (family.name.removeprefix(_RAY_PREFIX), family.documentation, family.type)
            samples = sums.setdefault(key, defaultdict(float))
            for sample in family.samples:
                if sample.name.endswith("_sum"):
                    continue  # Ray's are the counts times the middles of their buckets
                labels = tuple((k, v) for k, v in sample.labels.items() if k in known_labels)
                samples[sample.name.removeprefix(_RAY_PREFIX), labels] += sample.value
    return generate_latest(_SummedMetrics(sums))


def _read_nodes() -> list[str]:
    """Returns what each node's agent of Ray exports. Raises OSError."""
    import ray  # late, as in `RayInstruments.counter`

    urls = [
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for node in ray.nodes()
        if node["Alive"]
    ]
    with ThreadPoolExecutor(32) as readers:
        return list(readers.map(_read, urls))


def _read(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=_AGENT_TIMEOUT) as response:
            text: str = response.read().decode()
    except http.client.HTTPException as error:
        raise OSError(f"{url}: {error!r}") from None
    return text
