"""Spans of one traced request: the stages of its answer in order, and the log append of its impression. Pure.

A stage begins where the one before it ended, so the stages add up to the whole. The pipeline knows no spans,
only the callback ``mark``.
"""

from collections.abc import Callable

from recsys.observability import spans
from recsys.observability.spans import Span, SpanAttributes, SpanContext, request_span
from serving.request import Answer

# In this order. WAIT covers the retrieval shards, and computing their queries.
SESSION, WAIT, FILTER, RETRIEVE = "session", "wait", "filter", "retrieve"
RANK, SELECT, ANSWER = "rank", "select", "answer"
Record = Callable[[Span], None]
Mark = Callable[[str], None]


def unmarked(stage: str) -> None:
    """``mark`` of a request that isn't traced."""


class RequestTrace:
    """Collects the stages of one request. ``now_ns``: clock; ``arrived_ns``: time of the first byte."""

    def __init__(self, request_id: str, record: Record, now_ns: Callable[[], int], arrived_ns: int) -> None:
        self.request_id = request_id
        self._record, self._now_ns, self._arrived_ns = record, now_ns, arrived_ns
        self._marks: list[tuple[str, int]] = []
        self._answered_ns = 0

    def mark(self, stage: str) -> None:
        """Ends a stage. A stage that comes again makes a second span."""
        self._marks.append((stage, self._now_ns()))

    def answered(self, answer: Answer) -> None:
        """Records the span of the feed and those of its stages."""
        feed, began_ns = self._context(spans.FEED), self._arrived_ns
        for number, (stage, ended_ns) in enumerate(self._marks):
            self._record(Span(self._context(stage, number), stage, began_ns, ended_ns, feed))
            began_ns = ended_ns
        stamp = answer.stamp
        attributes: SpanAttributes = {
            "request_id": self.request_id, "surface": answer.impression.surface, "items": len(answer.items),
            "line": stamp.line, "epoch": stamp.epoch, "step": stamp.step,
            "degraded": ",".join(answer.degraded),
        }  # fmt: skip
        self._answered_ns = began_ns
        self._record(Span(feed, spans.FEED, self._arrived_ns, began_ns, attributes=attributes))

    def appended(self, topic: str, partition: int, offset: int) -> None:
        """Records the commit of the impression. Called by the writing thread."""
        attributes: SpanAttributes = {"topic": topic, "partition": partition, "offset": offset}
        context, feed = self._context(spans.IMPRESSION), self._context(spans.FEED)
        times_ns = self._answered_ns, self._now_ns()
        self._record(Span(context, spans.IMPRESSION, *times_ns, feed, attributes=attributes))

    def _context(self, name: str, *key: int) -> SpanContext:
        return request_span(self.request_id, name, *key)
