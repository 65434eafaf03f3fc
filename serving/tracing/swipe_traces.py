"""What one replica tells of traced swipes: their requests, their engagements, and which step was first served
with what they taught. Thin bookkeeping; whoever isn't traced costs a hash of the request's id."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from recsys.events.event_types import Engagement, dedupe_key
from recsys.events.records import EVENTS, Step
from recsys.log.protocol import Append
from recsys.observability.spans import (
    APPLY,
    ENGAGEMENT,
    FEED,
    FOLD,
    SEQUENCE,
    SERVED,
    Span,
    SpanAttributes,
    SpanRecorder,
    request_span,
    step_span,
)
from serving.tracing.request_trace import RequestTrace

_KEPT: Final = 5_000  # examples followed at a time, of each partition


class SwipeTraces:
    """Used by the event loop. ``instance``: the replica's name, for there may be several."""

    def __init__(self, tracer: SpanRecorder, instance: str, now_ns: Callable[[], int]) -> None:
        self.tracer, self._instance, self._now_ns = tracer, instance, now_ns
        self._unlearned: dict[int, deque[tuple[int, str, int]]] = {}  # offset, request, since

    def request(self, request_id: str, waited_s: float) -> RequestTrace | None:
        """The trace of a request that begins now; None where it isn't traced. ``waited_s``:
        since its first byte was seen."""
        if not self.tracer.is_sampled(request_id):
            return None
        waited_ns = round(1e9 * waited_s)
        return RequestTrace(
            request_id, self.tracer.record, self._now_ns, self._now_ns() - max(0, waited_ns)
        )

    def now_ns(self) -> int:
        return self._now_ns()

    def engaged(
        self,
        engagements: Sequence[Engagement],
        records: Sequence[Append],
        offsets: Sequence[int],
        began_ns: int,
    ) -> None:
        """Traces committed engagements. ``records``, ``offsets``: of the same events, in order."""
        ended_ns = self._now_ns()
        for event, record, offset in zip(engagements, records, offsets, strict=False):
            if self.tracer.is_sampled(event.request_id):
                self.tracer.record(_engagement(event, record, offset, began_ns, ended_ns))

    def example(self, partition: int, offset: int, request_id: str) -> None:
        """An example stands at ``offset`` of a partition of ``examples``."""
        if self.tracer.is_sampled(request_id):
            waiting = self._unlearned.setdefault(partition, deque(maxlen=_KEPT))
            waiting.append((offset, request_id, self._now_ns()))

    def applied(self, step: Step, began_ns: int) -> None:
        """A step is in every answer from now on, and with it all before it."""
        ended_ns = self._now_ns()
        of = (step.line, step.epoch, step.step)
        place = step_span(*of, APPLY, self._instance)
        about: SpanAttributes = {"line": step.line, "epoch": step.epoch, "step": step.step}
        about |= {"replica": self._instance}
        self.tracer.record(Span(place, APPLY, began_ns, ended_ns, step_span(*of), (), about))
        for there in step.ranges:
            waiting = self._unlearned.get(there.partition)
            while waiting and waiting[0][0] < there.stop:
                offset, request_id, _ = waiting.popleft()
                at = (there.partition, offset)
                its = request_span(request_id, SERVED, *at, self._instance)
                parent = request_span(request_id, SEQUENCE, *at)
                self.tracer.record(
                    Span(its, SERVED, began_ns, ended_ns, parent, (place,), about)
                )  # fmt: skip


def _engagement(
    event: Engagement, record: Append, offset: int, began_ns: int, ended_ns: int
) -> Span:
    about: SpanAttributes = {
        "kind": event.kind,
        "item_id": str(event.item_id),
        "time_ms": event.time_ms,
        "topic": EVENTS,
        "partition": record.partition,
        "offset": offset,
    }
    place = request_span(event.request_id, ENGAGEMENT, dedupe_key(event))
    feed = request_span(event.request_id, FEED)
    return Span(place, ENGAGEMENT, began_ns, ended_ns, feed, (), about)


def folded(tracer: SpanRecorder, events: Sequence[object], began_ns: int, ended_ns: int) -> None:
    """Engagements are in their users' sessions."""
    for event in events:
        if isinstance(event, Engagement) and tracer.is_sampled(event.request_id):
            key = dedupe_key(event)
            parent = request_span(event.request_id, ENGAGEMENT, key)
            about: SpanAttributes = {"kind": event.kind, "item_id": str(event.item_id)}
            place = request_span(event.request_id, FOLD, key)
            tracer.record(Span(place, FOLD, began_ns, ended_ns, parent, (), about))
