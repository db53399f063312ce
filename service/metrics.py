"""Figures for Prometheus, in a registry of one application's own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from service.pool import Pool

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.02, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """Counters, gauges and histograms; `text()` is what `/metrics` answers."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self._registry}
        self.requests = Counter("service_requests", "answers by route and status", ["route", "status"], **own)
        self.request_seconds = Histogram(
            "service_request_seconds", "from the request to the end of its answer", ["route"], buckets=_SECONDS, **own
        )
        self._waits = Histogram("service_queue_wait_seconds", "of pictures in the queue", buckets=_SECONDS, **own)
        self._batches = Histogram("service_batch_size", "pictures worked on together", buckets=range(1, 33), **own)
        self._stages = Histogram("service_stage_seconds", "a batch in a stage", ["stage"], buckets=_SECONDS, **own)
        self.steps = Counter("service_steps", "of the networks, for whole batches", ["stage"], **own)
        self._pictures = Counter("service_pictures", "made", **own)
        self._cancellations = Counter("service_cancellations", "pictures no longer wanted", **own)
        self.stopping = Histogram(
            "service_cancel_to_idle_seconds", "from a cancellation to an idle worker", buckets=_SECONDS, **own
        )
        self.restarts = Counter("service_worker_restarts", "workers that ended and were replaced", **own)

    def watch(self, pool: Pool) -> None:
        """Add what is read from the pool when somebody asks."""

        def gauge(name: str, text: str, read: object) -> None:
            Gauge(name, text, registry=self._registry).set_function(read)  # type: ignore[arg-type]

        gauge("service_queue_depth", "pictures that wait", lambda: pool.waiting)
        gauge("service_running", "pictures being worked on", lambda: pool.running)
        gauge("service_ready", "1 where a worker is ready", lambda: float(pool.ready))
        gauge("service_worker_memory_bytes", "resident, of all workers", lambda: sum(w.memory for w in pool.workers))
        gauge(
            "service_worker_device_memory_bytes",
            "held by torch on all devices",
            lambda: sum(w.device_memory for w in pool.workers),
        )

    def batch(self, waits: Sequence[float]) -> None:
        """A batch begins whose pictures waited so long."""
        self._batches.observe(len(waits))
        for wait in waits:
            self._waits.observe(wait)

    def made(self) -> None:
        """A picture is done."""
        self._pictures.inc()

    def timed(self, seconds: dict[str, float]) -> None:
        """A batch took so many seconds in each stage."""
        for stage, spent in seconds.items():
            self._stages.labels(stage).observe(spent)

    def cancelled(self) -> None:
        """A picture is no longer wanted."""
        self._cancellations.inc()

    def text(self) -> bytes:
        """The figures in Prometheus' text format."""
        return generate_latest(self._registry)

    def known(self) -> Iterable[str]:
        """The names of all figures."""
        return sorted(metric.name for metric in self._registry.collect())
