"""The spans of one traced request: the feed's stages in order, and its impression's way to the log. Pure.

A stage ends where it is marked, and begins where the one before it ended: the sum is the whole. The pipeline
knows no spans, only the ``mark`` that it is handed.
"""

from collections.abc import Callable

from recsys.observability.spans import (
    FEED,
    IMPRESSION,
    Span,
    SpanAttributes,
    SpanContext,
    request_span,
)
from serving.request import Answer

# In this order; "wait": for shards of retrieval, and before it what they are asked with.
SESSION, WAIT, FILTER, RETRIEVE = "session", "wait", "filter", "retrieve"
RANK, SELECT, ANSWER = "rank", "select", "answer"
Tell = Callable[[Span], None]
Mark = Callable[[str], None]


def unmarked(stage: str) -> None:
    """The ``mark`` of a request that isn't traced."""


class RequestTrace:
    """Marks of one request. ``now_ns`` is asked at each; ``arrived_ns``: when its first byte was seen."""

    def __init__(
        self, request_id: str, tell: Tell, now_ns: Callable[[], int], arrived_ns: int
    ) -> None:
        self.request_id = request_id
        self._tell, self._now_ns, self._arrived_ns = tell, now_ns, arrived_ns
        self._marks: list[tuple[str, int]] = []
        self._handed_ns = 0

    def mark(self, stage: str) -> None:
        """The stage ends here. One that comes again is one span more."""
        self._marks.append((stage, self._now_ns()))

    def answered(self, answer: Answer) -> None:
        """Tells the feed's span and its stages'."""
        feed, began_ns = self._place(FEED), self._arrived_ns
        for number, (stage, ended_ns) in enumerate(self._marks):
            place = self._place(stage, number)
            self._tell(Span(place, stage, began_ns, ended_ns, feed))
            began_ns = ended_ns
        stamp = answer.stamp
        about: SpanAttributes = {
            "request_id": self.request_id,
            "surface": answer.impression.surface,
            "items": len(answer.items),
            "line": stamp.line,
            "epoch": stamp.epoch,
            "step": stamp.step,
            "degraded": ",".join(answer.degraded),
        }
        self._handed_ns = began_ns
        self._tell(Span(feed, FEED, self._arrived_ns, began_ns, attributes=about))

    def appended(self, topic: str, partition: int, offset: int) -> None:
        """The impression is committed. Called by the thread that writes."""
        about: SpanAttributes = {"topic": topic, "partition": partition, "offset": offset}
        self._tell(
            Span(
                self._place(IMPRESSION), IMPRESSION, self._handed_ns, self._now_ns(),
                self._place(FEED), attributes=about,
            )
        )  # fmt: skip

    def _place(self, name: str, *about: int) -> SpanContext:
        return request_span(self.request_id, name, *about)
