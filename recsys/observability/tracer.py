"""Which requests are traced, and the way of their spans out of a process: a bounded queue and a thread.

A part gets a ``Tracer`` or None, and asks nothing of it but ``chosen`` and ``tell``: neither waits or raises.
What finds no room, or can't be sent, is dropped and counted.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from recsys.config.system_config import Config
from recsys.observability.log_throttle import Seldom
from recsys.observability.spans import Span, bound_of, is_below, number_of

_BATCH: Final = 512
_EVERY_S: Final = 0.5
_TELL_EVERY_S: Final = 60.0  # of what goes wrong
_LOG: Final = logging.getLogger(__name__)
Export = Callable[[Sequence[Span]], None]  # raises where it didn't go out


class Gauges(Protocol):
    def gauge(self, name: str, value: float) -> None: ...


class Tracer:
    """Samples by the request's id and hands spans to ``export`` in a thread of its own, in batches."""

    def __init__(self, share: float, export: Export, queue: int = 4_096) -> None:
        self._bound, self._export, self._most = bound_of(share), export, queue
        self._waiting: deque[Span] = deque()
        self._there, self._closing = threading.Event(), False
        self._complaints = Seldom(_TELL_EVERY_S)
        self.sent = self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
        self._thread.start()

    def chosen(self, request_id: str) -> bool:
        """Whether this request is traced: every part says the same."""
        return is_below(number_of(request_id), self._bound)

    def tell(self, span: Span) -> None:
        """Takes a span over. Any thread may call it."""
        if len(self._waiting) >= self._most or self._closing:
            self.dropped += 1
            return
        self._waiting.append(span)
        self._there.set()

    def count(self, beat: Gauges) -> None:
        """Puts how many went out, and how many didn't, into a heartbeat."""
        beat.gauge("spans_sent", self.sent)
        beat.gauge("spans_dropped", self.dropped)

    def close(self, timeout_s: float = 2.0) -> None:
        """Sends what waits, for so long at most."""
        self._closing = True
        self._there.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._closing or self._waiting:
            self._there.wait()
            if not self._closing:
                time.sleep(_EVERY_S)  # more of them come together
            self._there.clear()
            while self._waiting:
                self._send(
                    [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
                )

    def _send(self, spans: Sequence[Span]) -> None:
        try:
            self._export(spans)
            self.sent += len(spans)
        except Exception as error:  # whatever it is, no part is to end of it
            self.dropped += len(spans)
            if self._complaints.due("spans", time.monotonic()):
                _LOG.warning(
                    "spans dropped", extra={"dropped": self.dropped, "error": str(error)[:300]}
                )


def tracer_of(config: Config, part: str, instance: str = "") -> Tracer | None:
    """The tracer of a process; None where tracing is off. ``instance``: which of several of that part.
    Raises ValueError, saying what to install, where the exporter's library is missing."""
    tracing = config.tracing
    if not tracing.on:
        return None
    resource = {"service.name": f"recsys-{part}", "service.namespace": "recsys"}
    resource |= {"service.instance.id": instance} if instance else {}
    exports: list[Export] = []
    if tracing.file:
        from recsys.observability.span_file import SpanFile

        exports.append(SpanFile(tracing.file, int(tracing.file_mb * 2**20), resource))
    if tracing.endpoint:
        from recsys.observability.otlp_export import OtlpExport

        exports.append(OtlpExport(tracing.endpoint, resource))
    return Tracer(tracing.share, _each(exports), tracing.queue)


def tracer_in_actor(config: Config, part: str, instance: str = "") -> Tracer | None:
    """The same where answers and learning go before telling: whatever is missing is logged, and nothing
    traced. `recsys up` has refused before; a node of a cluster may lack what the others have."""
    try:
        return tracer_of(config, part, instance)
    except Exception as error:
        _LOG.error("nothing is traced here", extra={"error": f"{type(error).__name__}: {error}"})
        return None


def _each(exports: Sequence[Export]) -> Export:
    """All of them, also where one fails; raises then."""

    def export(spans: Sequence[Span]) -> None:
        failed: Exception | None = None
        for one in exports:
            try:
                one(spans)
            except Exception as error:
                failed = error
        if failed is not None:
            raise failed

    return exports[0] if len(exports) == 1 else export
