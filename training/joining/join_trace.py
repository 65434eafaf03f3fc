"""Emits tracing spans for the examples of traced requests, from the joiner's loop."""

from collections.abc import Callable, Sequence

from recsys.events.records import EXAMPLES, Example
from recsys.observability.spans import FEED, JOIN, Span, SpanAttributes, SpanRecorder, request_span


class JoinTrace:
    """Traces the examples of one loop: ``begin`` a turn, ``made`` per example, ``appended`` at its end."""

    def __init__(self, tracer: SpanRecorder, now_ns: Callable[[], int]) -> None:
        self.tracer, self._now_ns = tracer, now_ns
        self._began_ns, self._made = 0, list[tuple[int, Example]]()

    def begin(self) -> None:
        self._began_ns, self._made = self._now_ns(), []

    def made(self, place: int, example: Example) -> None:
        """Notes an example; ``place``: its index among the records appended in this turn."""
        if self.tracer.is_sampled(example.request_id):
            self._made.append((place, example))

    def appended(self, offsets: Sequence[int]) -> None:
        ended_ns = self._now_ns()
        for place, example in self._made:
            request_id, partition, offset = example.request_id, example.partition, offsets[place]
            attributes: SpanAttributes = {
                "item_id": str(example.item_id), "correction": example.correction,
                "shown_ms": example.shown_ms, "closed_ms": example.closed_ms, "topic": EXAMPLES,
                "partition": partition, "offset": offset,
            }  # fmt: skip
            span_id = request_span(request_id, JOIN, partition, offset)
            parent = request_span(request_id, FEED)
            times = (self._began_ns, ended_ns)
            self.tracer.record(Span(span_id, JOIN, *times, parent, (), attributes))
