"""What a server tells of itself to Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32)


class Metrics:
    """Counters and histograms of one server, in a registry of their own."""

    def __init__(self) -> None:
        """All at zero."""
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # memory, CPU seconds, open files
        self.requests = Counter(
            "sage_requests", "Requests", ["route", "method", "status"], registry=registry
        )
        self.seconds = Histogram(
            "sage_request_seconds",
            "From request to response",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self.answer_seconds = Histogram(
            "sage_answer_seconds", "From the queue to the grid", buckets=SECONDS, registry=registry
        )
        self.queued_seconds = Histogram(
            "sage_queued_seconds", "Of a question, in the queue", buckets=SECONDS, registry=registry
        )
        self.batch_size = Histogram(
            "sage_batch_questions", "Questions in one call", buckets=SIZES, registry=registry
        )

    def watch(self, name: str, text: str, label: str, read: Callable[[], dict[str, float]]) -> None:
        """Adds gauges that are read when they are asked for."""
        self.registry.register(_Read(name, text, label, read))


class _Read(Collector):
    def __init__(
        self, name: str, text: str, label: str, read: Callable[[], dict[str, float]]
    ) -> None:
        self._about, self._label, self._read = (name, text), label, read

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Names the gauges without reading them."""
        yield GaugeMetricFamily(*self._about, labels=[self._label])

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Reads the gauges."""
        family = GaugeMetricFamily(*self._about, labels=[self._label])
        for value, number in self._read().items():
            family.add_metric([value], number)
        yield family
