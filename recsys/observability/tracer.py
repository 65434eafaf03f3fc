"""Samples requests and exports their spans through a bounded queue and a thread.

``is_sampled`` and ``record`` neither wait nor raise. Spans that find the queue full or can't be sent are
dropped and counted, which OpenTelemetry's BatchSpanProcessor doesn't do.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from recsys.config.system_config import Config
from recsys.observability.log_lines import LogThrottle
from recsys.observability.span_export import SpanFile, SpanReceiver
from recsys.observability.spans import Span, is_trace_sampled, sampling_bound, trace_number

_BATCH: Final = 512
_EVERY_S: Final = 0.5
_WARN_EVERY_S: Final = 60.0
_LOG: Final = logging.getLogger(__name__)
Export = Callable[[Sequence[Span]], None]  # raises on failure


class Gauges(Protocol):
    def gauge(self, name: str, value: float) -> None: ...


class Tracer:
    """Samples by request id and hands batches of spans to all ``exports`` in its own thread."""

    def __init__(self, share: float, exports: Sequence[Export], queue: int = 4_096) -> None:
        self._bound, self._exports, self._max_waiting = sampling_bound(share), exports, queue
        self._waiting: deque[Span] = deque()
        self._recorded, self._closing = threading.Event(), False
        self._warnings = LogThrottle(_WARN_EVERY_S)
        self.sent = self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
        self._thread.start()

    def is_sampled(self, request_id: str) -> bool:
        """Whether this request is traced; all parts agree."""
        return is_trace_sampled(trace_number(request_id), self._bound)

    def record(self, span: Span) -> None:
        """Queues a span. Thread-safe."""
        if len(self._waiting) >= self._max_waiting or self._closing:
            self.dropped += 1
            return
        self._waiting.append(span)
        self._recorded.set()

    def count(self, beat: Gauges) -> None:
        """Writes the numbers of sent and dropped spans into a heartbeat."""
        beat.gauge("spans_sent", self.sent)
        beat.gauge("spans_dropped", self.dropped)

    def close(self, timeout_s: float = 2.0) -> None:
        """Sends waiting spans, for ``timeout_s`` at most."""
        self._closing = True
        self._recorded.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._closing or self._waiting:
            self._recorded.wait()
            if not self._closing:
                time.sleep(_EVERY_S)  # gathers a batch
            self._recorded.clear()
            while self._waiting:
                size = min(_BATCH, len(self._waiting))
                self._send([self._waiting.popleft() for _ in range(size)])

    def _send(self, spans: Sequence[Span]) -> None:
        failure: Exception | None = None
        for export in self._exports:
            try:
                export(spans)
            except Exception as error:  # tracing must not end a part, nor another export
                failure = error
        if failure is None:
            self.sent += len(spans)
            return
        self.dropped += len(spans)
        if self._warnings.due("spans", time.monotonic()):
            fields = {"dropped": self.dropped, "error": str(failure)[:300]}
            _LOG.warning("spans dropped", extra=fields)


def open_tracer(config: Config, part: str, instance: str = "") -> Tracer | None:
    """The tracer of a process; None if tracing is off. ``instance`` tells several of one part apart."""
    tracing = config.tracing
    if not tracing.on:
        return None
    resource = {"service.name": f"recsys-{part}", "service.namespace": "recsys"}
    resource |= {"service.instance.id": instance} if instance else {}
    exports: list[Export] = []
    if tracing.file:
        exports.append(SpanFile(tracing.file, int(tracing.file_mb * 2**20), resource))
    if tracing.endpoint:
        exports.append(SpanReceiver(tracing.endpoint, resource))
    return Tracer(tracing.share, exports, tracing.queue)
