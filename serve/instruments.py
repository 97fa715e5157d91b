"""Counters and spreads that `/metrics` tells: of this process, or of all replicas.

Of replicas each counts for itself by Ray's own metrics, Ray's agent on each node gathers that every
ten seconds, and reading adds up what the nodes have. Ray 2.60 exports no gauges that an actor sets.
"""

from __future__ import annotations

import http.client
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families

PREFIX = "dpo_tune_serve_"
_RAYS = "ray_"
"""Which Ray puts before every name."""
_PATIENCE = 5.0
"""Seconds for a node's agent to answer."""

Record = Callable[..., None]
"""Called with a value and a keyword for each label."""


class Instruments(Protocol):
    """Names are without PREFIX; every label is given at every record."""

    def counter(self, name: str, about: str, labels: tuple[str, ...]) -> Record: ...

    def spread(
        self, name: str, about: str, labels: tuple[str, ...], bounds: list[float]
    ) -> Record: ...

    def read(self) -> bytes:
        """In Prometheus' text format. Raises OSError."""
        ...


class LocalInstruments:
    """Of one process that answers alone."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()

    def counter(self, name: str, about: str, labels: tuple[str, ...]) -> Record:
        made = Counter(PREFIX + name, about, labels, registry=self._registry)
        return lambda value, **given: made.labels(**given).inc(value)

    def spread(self, name: str, about: str, labels: tuple[str, ...], bounds: list[float]) -> Record:
        made = Histogram(PREFIX + name, about, labels, buckets=bounds, registry=self._registry)
        return lambda value, **given: made.labels(**given).observe(value)

    def read(self) -> bytes:
        return generate_latest(self._registry)


class RayInstruments:
    """Of a replica; what is read is the sum over all."""

    def __init__(self) -> None:
        self._labels: set[str] = {"le"}
        """Ours; Ray's own say which process it was."""

    def counter(self, name: str, about: str, labels: tuple[str, ...]) -> Record:
        from ray.util.metrics import Counter

        made = Counter(PREFIX + name, about, self._known(labels))
        return lambda value, **given: made.inc(value, given) if value else None  # 0 is refused

    def spread(self, name: str, about: str, labels: tuple[str, ...], bounds: list[float]) -> Record:
        from ray.util.metrics import Histogram

        made = Histogram(PREFIX + name, about, bounds, self._known(labels))
        return lambda value, **given: made.observe(value, given)

    def read(self) -> bytes:
        return _add_up(_read_nodes(), self._labels)

    def _known(self, labels: tuple[str, ...]) -> tuple[str, ...]:
        self._labels |= set(labels)
        return labels


class _Families:
    """A collector of prometheus_client."""

    def __init__(self, sums: dict[tuple[str, str, str], dict[Any, float]]) -> None:
        self._sums = sums

    def collect(self) -> Iterator[Metric]:
        for known, samples in self._sums.items():
            metric = Metric(*known)
            for (name, labels), value in samples.items():
                metric.add_sample(name, dict(labels), value)
            yield metric


def _add_up(texts: Iterable[str], known: set[str]) -> bytes:
    """Our metrics out of what several nodes export, summed over processes and nodes."""
    sums: dict[tuple[str, str, str], dict[Any, float]] = {}
    for text in texts:
        for family in text_string_to_metric_families(text):
            if not family.name.startswith(_RAYS + PREFIX):
                continue
            about = (family.name.removeprefix(_RAYS), family.documentation, family.type)
            samples = sums.setdefault(about, defaultdict(float))
            for sample in family.samples:
                if sample.name.endswith("_sum"):
                    continue  # Ray's are the counts times the middles of their buckets
                labels = {key: sample.labels[key] for key in sample.labels if key in known}
                samples[sample.name.removeprefix(_RAYS), tuple(labels.items())] += sample.value
    registry = CollectorRegistry()
    registry.register(_Families(sums))
    return generate_latest(registry)


def _read_nodes() -> list[str]:
    """What each node's agent of Ray exports. Raises OSError."""
    import ray

    urls = [
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for node in ray.nodes()
        if node["Alive"]
    ]
    with ThreadPoolExecutor(32) as readers:
        return list(readers.map(_read, urls))


def _read(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=_PATIENCE) as answer:
            text: str = answer.read().decode()
    except http.client.HTTPException as error:
        raise OSError(f"{url}: {error!r}") from None
    return text
