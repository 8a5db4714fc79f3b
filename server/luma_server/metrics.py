"""What the server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0)


class Metrics:
    """The counters of one application, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "luma_requests",
            "Requests answered.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "luma_request_seconds",
            "Time from a request to the end of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._received = Counter(
            "luma_received_bytes", "Bytes of request bodies.", registry=self.registry
        )
        self._sent = Counter("luma_sent_bytes", "Bytes of answers.", registry=self.registry)
        self._store = Histogram(
            "luma_store_seconds",
            "Time of one operation on the store: look, list, commit or delete.",
            ["operation"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._measured = Counter(
            "luma_measured", "Statistics of checkpoints computed.", registry=self.registry
        )

    def measured(self) -> None:
        """Count statistics that were computed."""
        self._measured.inc()

    def request(
        self, method: str, route: str, status: int, *, seconds: float, received: int, sent: int
    ) -> None:
        """Count an answered request; sizes are in bytes."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        self._received.inc(received)
        self._sent.inc(sent)

    @contextmanager
    def store(self, operation: str) -> Iterator[None]:
        """Count an operation on the store, and the time that it takes, also where it fails."""
        with self._store.labels(operation).time():
            yield

    def gauge(self, name: str, text: str, label: str, read: Callable[[], dict[str, int]]) -> None:
        """Add a gauge whose values are read when somebody asks."""
        self.registry.register(_Gauge(name, text, label, read))

    def text(self) -> bytes:
        """Return everything in Prometheus' format."""
        return generate_latest(self.registry)


class _Gauge(Collector):
    def __init__(
        self, name: str, text: str, label: str, read: Callable[[], dict[str, int]]
    ) -> None:
        self._name, self._text, self._label, self._read = name, text, label, read

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(self._name, self._text, labels=[self._label])
        for value, count in self._read().items():
            family.add_metric([value], count)
        yield family
