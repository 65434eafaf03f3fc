"""What Prometheus reads of one replica; the outermost layer of its HTTP: counting, timing, turning away."""

import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serving.service import Service

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_BUCKETS: Final = (
    0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
)  # fmt: skip


class ServingMetrics:
    """Counters of requests and events; gauges are read when they are asked for."""

    def __init__(self, service: Service) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "recsys_requests", "Requests answered", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "recsys_request_seconds", "Time to an answer", ["route"], registry=self.registry,
            buckets=_BUCKETS,
        )  # fmt: skip
        self.events = Counter(
            "recsys_events", "Events by status", ["status"], registry=self.registry
        )
        self.degraded = Counter(
            "recsys_degraded", "Answers without a stage", ["stage"], registry=self.registry
        )
        self.refused = Counter("recsys_refused", "Requests turned away", registry=self.registry)
        writer, reader, replica = service.writer, service.reader, service.replica
        fresh = reader.freshness
        gauges: dict[str, tuple[str, Callable[[], float | None]]] = {
            "ready": (
                "1 once the replica has caught up with the log",
                lambda: float(service.ready),
            ),
            "epoch": ("Epoch of the weights that answer", lambda: replica.epoch),
            "step": ("Step of the weights that answer", lambda: replica.step),
            "items": ("Items that may be recommended", lambda: replica.catalogue.living.count),
            "catalogue_offset": ("Next to read of items", lambda: replica.catalogue_offset),
            "item_state_offset": ("Next to read of item_state", lambda: replica.item_state_offset),
            "delta_gaps": ("Gaps met in the deltas", lambda: reader.line.gaps),
            "unreadable": ("Records that could not be read", lambda: reader.unreadable),
            "log_failures": ("Appends that failed", lambda: writer.failures),
            "impressions_dropped": ("Impressions not logged", lambda: writer.dropped),
            "impressions_kept_bytes": ("Waiting for the log", lambda: writer.kept_bytes),
            "session_misses": ("Requests without their session", lambda: service.session_misses),
            "click_to_session_p95_ms": (
                "Acknowledged view to session",
                lambda: fresh.to_session.percentile(0.95),
            ),
            "click_to_served_p95_ms": (
                "Acknowledged view to model",
                lambda: fresh.to_served.percentile(0.95),
            ),
        }
        for name, (about, read) in gauges.items():
            gauge = Gauge(f"recsys_{name}", about, registry=self.registry)
            gauge.set_function(_or_nan(read))

    def text(self) -> bytes:
        return generate_latest(self.registry)


def _or_nan(read: Callable[[], float | None]) -> Callable[[], float]:
    def value() -> float:
        found = read()
        return float("nan") if found is None else found

    return value


class Gate:
    """ASGI: counts and times every request, and turns away what is over the limit of requests at a time.

    Turned away early: a queue that grows makes every answer late, and a late answer is worth nothing.
    """

    def __init__(self, app: App, metrics: ServingMetrics, limit: int) -> None:
        self._app, self._metrics, self._limit = app, metrics, limit
        self._inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        limited = scope["path"].startswith("/v1/")
        if limited and self._inside >= self._limit:
            self._metrics.refused.inc()
            return await refuse(send, 503, f"more than {self._limit} requests at a time", 1)
        status = 500

        async def seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        started = time.perf_counter()
        self._inside += limited
        try:
            await self._app(scope, receive, seen)
        finally:
            self._inside -= limited
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - started)


async def refuse(send: Send, status: int, reason: str, retry_after_s: int) -> None:
    """A whole answer that says no, and when to try again."""
    body = json.dumps({"error": reason, "details": []}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"retry-after", str(retry_after_s).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
