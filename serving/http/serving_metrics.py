"""Prometheus metrics of one replica."""

import uuid
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from recsys.features.source_credits import KEYS
from recsys.observability.recent_delays import RecentDelays
from serving.access.proofs import FAULTS
from serving.admission.deadline import POPULAR, SHORT, UNRANKED
from serving.admission.load_shedding import LIST_PATH
from serving.click_lists import LEFT_OUT
from serving.ingestion.event_validation import ACCEPTED, DUPLICATE, LOST, REJECTED, RETRY, ValidatedBatch
from serving.ingestion.log_writer import CLOSED, FORGOTTEN, FULL, REFUSED, SPACE, TORN
from serving.request import CATCHING_UP, SESSION, STALE
from serving.retrieval.source_shares import recall_by_source
from serving.service import Service

_BUCKETS: Final = (
    0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
)  # fmt: skip
# Series with known labels start at 0: ``rate`` can't see a series that begins at 1.
STAGES: Final = ("model", STALE, SESSION, CATCHING_UP, "retrieval", "rank", POPULAR, SHORT, UNRANKED)
STATUSES: Final = (ACCEPTED, DUPLICATE, REJECTED, RETRY, LOST)
ReadGauge = tuple[str, Callable[[], float | None]]  # description and reader of a gauge


class ServingMetrics:
    """Counters of requests and events, and gauges that are read at each scrape."""

    def __init__(self, service: Service) -> None:
        self.registry = registry = CollectorRegistry()
        serve = service.config.serve
        several = max(serve.replicas, serve.max_replicas) > 1
        # A scrape reaches any of several replicas: without a label the counters would seem to jump.
        replica = uuid.uuid4().hex[:8]
        self._exposed = _LabelledCollector(registry, replica) if several else registry
        counter = partial(Counter, registry=registry)
        self.requests = counter("recsys_requests", "Requests answered", ["route", "status"])
        self.seconds = Histogram(
            "recsys_request_seconds", "Time to an answer", ["route"], registry=registry, buckets=_BUCKETS
        )
        self.events = counter("recsys_events", "Events received, by outcome", ["status"])
        self.unproven = counter("recsys_unproven", "Accepted events that don't count, by reason", ["why"])
        self.degraded = counter("recsys_degraded", "Answers that skipped a stage", ["stage"])
        self.repeated = counter("recsys_rankings_repeated", "Rankings with an id answered before")
        self.refused = counter("recsys_refused", "Requests refused early", ["route", "reason"])
        all_labels = ((self.degraded, STAGES), (self.unproven, FAULTS), (self.events, STATUSES))
        for labelled, labels in all_labels:
            for label in labels:
                labelled.labels(label)
        self._now_ms = service.live.timer_ms
        # Of the newest requests: ms of answered lists, and 1 for a failed or degraded one.
        self._answers, self._failed, self._degraded = (RecentDelays() for _ in range(3))
        self._answered = 0
        for name, (description, read) in (_gauges(service) | self._gauges_of_answers()).items():
            gauge = Gauge(f"recsys_{name}", description, registry=registry)
            gauge.set_function(partial(_or_nan, read))
        recall = Gauge(
            "recsys_source_recall",
            "Part of the engaged items that a source had as candidates",
            ["source"],
            registry=registry,
        )
        for name in {*KEYS, *service.config.policy.sources, "union"}:
            recall.labels(name).set_function(partial(_or_nan, partial(_recall, service, name)))
        dropped = Gauge(
            "recsys_impressions_dropped",
            "Impressions never logged, since the start",
            ["reason"],
            registry=registry,
        )
        for reason in (FULL, SPACE, CLOSED, REFUSED, TORN, FORGOTTEN):
            dropped.labels(reason).set_function(partial(service.writer.drops.__getitem__, reason))
        unlisted = Gauge(
            "recsys_clicks_unlisted",
            "Clicks without a list, not learned, since the start",
            ["why"],
            registry=registry,
        )
        for why in LEFT_OUT:
            unlisted.labels(why).set_function(partial(service.clicks.lists.left_out.__getitem__, why))

    def observe_request(self, route: str, status: int, seconds: float) -> None:
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)
        now_ms = self._now_ms()
        self._failed.add(float(status >= 500), now_ms)
        if status == 200 and LIST_PATH.fullmatch(route):
            self._answers.add(1000 * seconds, now_ms)
            self._answered += 1

    def count_refused(self, route: str, reason: str) -> None:
        self.refused.labels(route, reason).inc()

    def count_events(self, status: str, count: int) -> None:
        """Counts received events by outcome."""
        self.events.labels(status).inc(count)

    def count_batch(self, batch: ValidatedBatch) -> None:
        """Counts the events of a committed batch by outcome."""
        for status in (ACCEPTED, DUPLICATE, REJECTED, RETRY):
            self.count_events(status, batch.count(status))
        for fault, count in batch.unproven.items():
            self.unproven.labels(fault).inc(count)

    def count_degraded(self, stages: Sequence[str]) -> None:
        """Counts an answer, and the stages that it skipped."""
        self._degraded.add(float(bool(stages)), self._now_ms())
        for stage in stages:
            self.degraded.labels(stage).inc()

    def answers(self) -> dict[str, float | None]:
        """Number, times and shares of answers, by name of the gauge."""
        return {name: read() for name, (_, read) in self._gauges_of_answers().items()}

    def _gauges_of_answers(self) -> dict[str, ReadGauge]:
        return {
            "answers": ("Lists answered, since the start", lambda: self._answered),
            "answer_p50_ms": ("Time to an answered list, median of the last 30 s",
                              lambda: self._answers.percentile(0.5, self._now_ms())),
            "answer_p99_ms": ("Time to an answered list, p99 of the last 30 s",
                              lambda: self._answers.percentile(0.99, self._now_ms())),
            "failed_share": ("Part of the requests of the last 30 s that failed (5xx)",
                             lambda: self._failed.mean(self._now_ms())),
            "degraded_share": ("Part of the lists of the last 30 s that skipped a stage",
                               lambda: self._degraded.mean(self._now_ms())),
        }  # fmt: skip

    def text(self) -> bytes:
        return generate_latest(self._exposed)


def _gauges(service: Service) -> dict[str, ReadGauge]:
    """Gauges by name, without prefix: description and reader."""
    writer, followers, replica = service.writer, service.live.followers, service.replica
    fresh, traces = service.live.progress.freshness, service.traces
    return {
        "ready": ("1 once the replica has caught up with the log", lambda: float(service.ready)),
        "epoch": ("Epoch of the weights that answer", lambda: replica.epoch),
        "step": ("Step of the weights that answer", lambda: replica.step),
        "items": ("Items that may be recommended", lambda: replica.catalogue.living.count),
        "catalogue_offset": ("Next offset to read of items", lambda: replica.catalogue_offset),
        "item_state_offset": ("Next offset to read of item_state", lambda: replica.item_state_offset),
        "delta_gaps": ("Gaps in the deltas, since the start", lambda: followers.weights.line.gaps),
        "unreadable": ("Unreadable records, since the start", lambda: followers.unreadable),
        "catalogue_damaged": ("Damaged snapshots of the catalogue, not used, since the start",
                              lambda: followers.catalogue.damaged if followers.catalogue else 0),
        "log_failures": ("Failed appends, since the start", lambda: writer.failures),
        "impressions_kept_bytes": ("Bytes of impressions that wait for the log, in memory",
                                   lambda: writer.kept_bytes),
        "impressions_on_disk_bytes": ("Bytes of impressions that wait for the log, on disk",
                                      lambda: writer.on_disk_bytes),
        "retrieval_misses": ("Searches that a retrieval shard didn't answer, since the start",
                             lambda: service.shards.failures if service.shards else 0),
        "session_misses": ("Requests without their session, since the start",
                           lambda: service.sessions.misses),
        "function_errors": ("Failed calls of an app's functions, each of which gave 0, since the start",
                            lambda: service.live.pipeline.builder.derivation.errors.total()),
        "spans_sent": ("Trace spans sent, since the start",
                       lambda: traces.tracer.sent if traces else 0),
        "spans_dropped": ("Trace spans dropped for lack of room or a receiver, since the start",
                          lambda: traces.tracer.dropped if traces else 0),
        "click_to_session_p95_ms": ("From an acknowledged view to the session that contains it",
                                    lambda: fresh.to_session.percentile(0.95, service.live.timer_ms())),
        "click_to_served_p95_ms": ("From an acknowledged view to the model that learned from it",
                                   lambda: fresh.to_served.percentile(0.95, service.live.timer_ms())),
        "view_to_acknowledged_p95_ms": (
            "From a view's own time to its acknowledgement: how long its client held it",
            lambda: fresh.view_to_acknowledged.percentile(0.95, service.live.timer_ms())),
        "view_to_served_p95_ms": ("From a view's own time to the model that learned from it",
                                  lambda: fresh.view_to_served.percentile(0.95, service.live.timer_ms())),
    }  # fmt: skip


def _recall(service: Service, source: str) -> float | None:
    return recall_by_source(service.replica, service.now_ms()).get(source)


class _LabelledCollector(Collector):
    """Adds the label ``replica`` to every sample of a registry."""

    def __init__(self, registry: CollectorRegistry, replica: str) -> None:
        self._registry, self._replica = registry, replica

    def collect(self) -> Iterable[Metric]:
        for family in self._registry.collect():
            metric = Metric(family.name, family.documentation, family.type, family.unit)
            for name, labels, value, *_ in family.samples:
                metric.add_sample(name, labels | {"replica": self._replica}, value)
            yield metric


def _or_nan(read: Callable[[], float | None]) -> float:
    value = read()
    return float("nan") if value is None else value
