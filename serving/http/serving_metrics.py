"""What Prometheus reads of one replica."""

import uuid
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from serving.admission.deadline import POPULAR, SHORT, UNRANKED
from serving.ingestion.event_validation import ACCEPTED, DUPLICATE, LOST, REJECTED
from serving.ingestion.log_writer import CLOSED, FULL, REFUSED, TORN
from serving.request import SESSION, STALE
from serving.service import Service

_BUCKETS: Final = (
    0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
)  # fmt: skip
# What is known beforehand is told as 0 from the start: ``rate`` can't see a series begin at 1.
STAGES: Final = ("model", STALE, SESSION, "retrieval", "rank", POPULAR, SHORT, UNRANKED)
STATUSES: Final = (ACCEPTED, DUPLICATE, REJECTED, LOST)


class ServingMetrics:
    """Counters of requests and events; gauges are read when they are asked for."""

    def __init__(self, service: Service) -> None:
        self.registry = CollectorRegistry()
        serve = service.config.serve
        several = max(serve.replicas, serve.max_replicas) > 1
        # A scrape reaches any one of them: without its name, each counter would seem to go back and forth.
        self._named = _named(self.registry, uuid.uuid4().hex[:8]) if several else self.registry
        self.requests = Counter(
            "recsys_requests", "Requests answered", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "recsys_request_seconds", "Time to an answer", ["route"], registry=self.registry,
            buckets=_BUCKETS,
        )  # fmt: skip
        self.events = Counter(
            "recsys_events",
            "Events from outside, by what became of them",
            ["status"],
            registry=self.registry,
        )
        self.degraded = Counter(
            "recsys_degraded",
            "Answers that went without a stage",
            ["stage"],
            registry=self.registry,
        )
        self.repeated = Counter(
            "recsys_rankings_repeated",
            "Rankings whose id was answered before",
            registry=self.registry,
        )
        self.refused = Counter(
            "recsys_refused",
            "Requests turned away at the door",
            ["route", "reason"],
            registry=self.registry,
        )
        self._begin_at_0()
        for name, (about, read) in _gauges(service).items():
            gauge = Gauge(f"recsys_{name}", about, registry=self.registry)
            gauge.set_function(_or_nan(read))

        dropped = Gauge(
            "recsys_impressions_dropped", "Impressions that will never be logged, since it began", ["reason"],
            registry=self.registry,
        )  # fmt: skip
        for reason in (FULL, CLOSED, REFUSED, TORN):
            dropped.labels(reason).set_function(partial(service.writer.drops.__getitem__, reason))

    def _begin_at_0(self) -> None:
        for stage in STAGES:
            self.degraded.labels(stage)
        for status in STATUSES:
            self.events.labels(status)

    def answered(self, route: str, status: int, seconds: float) -> None:
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def turned_away(self, route: str, reason: str) -> None:
        self.refused.labels(route, reason).inc()

    def took(self, status: str, count: int) -> None:
        """Events that came from outside, by what became of them."""
        self.events.labels(status).inc(count)

    def left_out(self, stages: Sequence[str]) -> None:
        """Stages that an answer had to do without."""
        for stage in stages:
            self.degraded.labels(stage).inc()

    def ranked_again(self) -> None:
        """A ranking came whose id was answered before."""
        self.repeated.inc()

    def text(self) -> bytes:
        return generate_latest(self._named)


def _gauges(service: Service) -> dict[str, tuple[str, Callable[[], float | None]]]:
    """By name, without prefix: what a gauge is about, and where it is read."""
    writer, reader, replica = service.writer, service.reader, service.replica
    fresh, traces = reader.freshness, service.traces
    return {
        "ready": (
            "1 once the replica has caught up with the log",
            lambda: float(service.ready),
        ),
        "epoch": ("Epoch of the weights that answer", lambda: replica.epoch),
        "step": ("Step of the weights that answer", lambda: replica.step),
        "items": ("Items that may be recommended", lambda: replica.catalogue.living.count),
        "catalogue_offset": ("Next to read of items", lambda: replica.catalogue_offset),
        "item_state_offset": ("Next to read of item_state", lambda: replica.item_state_offset),
        "delta_gaps": ("Gaps met in the deltas, since it began", lambda: reader.line.gaps),
        "unreadable": (
            "Records that couldn't be read, since it began",
            lambda: reader.unreadable,
        ),
        "log_failures": ("Appends that failed, since it began", lambda: writer.failures),
        "impressions_kept_bytes": (
            "Bytes of impressions that wait for the log, in memory",
            lambda: writer.kept_bytes,
        ),
        "impressions_on_disk_bytes": (
            "Bytes of impressions that wait for the log, on disk",
            lambda: writer.on_disk_bytes,
        ),
        "retrieval_misses": (
            "Times that a shard of retrieval gave no answer, since it began",
            lambda: service.shards.failures if service.shards else 0,
        ),
        "session_misses": (
            "Requests without their session, since it began",
            lambda: service.session_misses,
        ),
        "spans_sent": (
            "Spans of traced requests that were sent, since it began",
            lambda: traces.tracer.sent if traces else 0,
        ),
        "spans_dropped": (
            "Spans that weren't: no room, or no receiver, since it began",
            lambda: traces.tracer.dropped if traces else 0,
        ),
        "click_to_session_p95_ms": (
            "From an acknowledged view to the session that has it",
            lambda: fresh.to_session.percentile(0.95),
        ),
        "click_to_served_p95_ms": (
            "From an acknowledged view to the model that learned it",
            lambda: fresh.to_served.percentile(0.95),
        ),
        "view_to_acknowledged_p95_ms": (
            "From a view's own time to its acknowledgement: what its client held it",
            lambda: fresh.view_to_acknowledged.percentile(0.95, service.now_ms()),
        ),
        "view_to_served_p95_ms": (
            "From a view's own time to the model that learned it",
            lambda: fresh.view_to_served.percentile(0.95, service.now_ms()),
        ),
    }


class _Named(Collector):
    """Everything of a registry with one label more."""

    def __init__(self, registry: CollectorRegistry, replica: str) -> None:
        self._registry, self._replica = registry, replica

    def collect(self) -> Iterable[Metric]:
        for its in self._registry.collect():
            told = Metric(its.name, its.documentation, its.type, its.unit)
            for name, labels, value, *_ in its.samples:
                told.add_sample(name, labels | {"replica": self._replica}, value)
            yield told


def _named(registry: CollectorRegistry, replica: str) -> CollectorRegistry:
    named = CollectorRegistry()
    named.register(_Named(registry, replica))
    return named


def _or_nan(read: Callable[[], float | None]) -> Callable[[], float]:
    def value() -> float:
        found = read()
        return float("nan") if found is None else found

    return value
