"""Spans that one replica records of traced swipes: requests, engagements, and the first step served that
learned from them. A request that isn't traced costs a hash of its id."""

from collections.abc import Callable, Iterable, Sequence

from recsys.events.event_types import Engagement, dedupe_key
from recsys.events.records import EVENTS, SampledView, Step
from recsys.log.protocol import Append
from recsys.observability import spans
from recsys.observability.spans import Span, SpanAttributes, SpanRecorder, request_span, step_span
from serving.tracing.request_trace import RequestTrace


class SwipeTraces:
    """Records spans; belongs to the event loop. ``instance``: name of the replica among several."""

    def __init__(self, tracer: SpanRecorder, instance: str, now_ns: Callable[[], int]) -> None:
        self.tracer, self._instance, self.now_ns = tracer, instance, now_ns

    def request(self, request_id: str, waited_s: float) -> RequestTrace | None:
        """Starts the trace of a request; None if it isn't sampled. ``waited_s``: since its first byte."""
        if not self.tracer.is_sampled(request_id):
            return None
        arrived_ns = self.now_ns() - max(0, round(1e9 * waited_s))
        return RequestTrace(request_id, self.tracer.record, self.now_ns, arrived_ns)

    def engaged(
        self,
        engagements: Sequence[Engagement],
        records: Sequence[Append],
        offsets: Sequence[int],
        began_ns: int,
    ) -> None:
        """Records committed engagements. ``records``, ``offsets``: of the same events, in order."""
        ended_ns = self.now_ns()
        for event, record, offset in zip(engagements, records, offsets, strict=False):
            if self.tracer.is_sampled(event.request_id):
                self.tracer.record(_engagement_span(event, record, offset, began_ns, ended_ns))

    def applied(
        self, step: Step, began_ns: int, ended_ns: int, own: Iterable[tuple[str, SampledView]]
    ) -> None:
        """Records that answers use a step from now on. ``own``: views in it that this replica acknowledged,
        with their requests."""
        version = (step.line, step.epoch, step.step)
        context = step_span(*version, spans.APPLY, self._instance)
        attributes: SpanAttributes = {"line": step.line, "epoch": step.epoch, "step": step.step}
        attributes |= {"replica": self._instance}
        times_ns, step_context = (began_ns, ended_ns), step_span(*version)
        self.tracer.record(Span(context, spans.APPLY, *times_ns, step_context, (), attributes))
        for request_id, view in own:
            if self.tracer.is_sampled(request_id):
                example = (view.partition, view.offset)
                served = request_span(request_id, spans.SERVED, *example, self._instance)
                parent = request_span(request_id, spans.SEQUENCE, *example)
                self.tracer.record(Span(served, spans.SERVED, *times_ns, parent, (context,), attributes))


def _engagement_span(event: Engagement, record: Append, offset: int, began_ns: int, ended_ns: int) -> Span:
    attributes: SpanAttributes = {
        "kind": event.kind, "item_id": str(event.item_id), "time_ms": event.time_ms, "topic": EVENTS,
        "partition": record.partition, "offset": offset,
    }  # fmt: skip
    context = request_span(event.request_id, spans.ENGAGEMENT, dedupe_key(event))
    feed = request_span(event.request_id, spans.FEED)
    return Span(context, spans.ENGAGEMENT, began_ns, ended_ns, feed, (), attributes)


def folded(tracer: SpanRecorder, events: Sequence[object], began_ns: int, ended_ns: int) -> None:
    """Records engagements that were folded into their users' sessions."""
    for event in events:
        if isinstance(event, Engagement) and tracer.is_sampled(event.request_id):
            key = dedupe_key(event)
            parent = request_span(event.request_id, spans.ENGAGEMENT, key)
            attributes: SpanAttributes = {"kind": event.kind, "item_id": str(event.item_id)}
            context = request_span(event.request_id, spans.FOLD, key)
            tracer.record(Span(context, spans.FOLD, began_ns, ended_ns, parent, (), attributes))
