"""The spans of examples that traced requests became: the joiner's loop tells of each that it makes."""

from collections.abc import Callable, Sequence

from recsys.events.records import EXAMPLES, Example
from recsys.observability.spans import FEED, JOIN, About, Span, Tells, of_request


class JoinTrace:
    """Of one loop: ``begin`` a turn, ``made`` an example, ``appended`` all that were made."""

    def __init__(self, tracer: Tells, now_ns: Callable[[], int]) -> None:
        self.tracer, self._now_ns = tracer, now_ns
        self._began_ns, self._made = 0, list[tuple[int, Example]]()

    def begin(self) -> None:
        self._began_ns, self._made = self._now_ns(), []

    def made(self, place: int, example: Example) -> None:
        """``place``: among what is appended in this turn."""
        if self.tracer.chosen(example.request_id):
            self._made.append((place, example))

    def appended(self, offsets: Sequence[int]) -> None:
        ended_ns = self._now_ns()
        for place, its in self._made:
            offset = offsets[place]
            about: About = {
                "item_id": str(its.item_id),
                "correction": its.correction,
                "shown_ms": its.shown_ms,
                "closed_ms": its.closed_ms,
                "topic": EXAMPLES,
                "partition": its.partition,
                "offset": offset,
            }
            span = of_request(its.request_id, JOIN, its.partition, offset)
            feed = of_request(its.request_id, FEED)
            self.tracer.tell(Span(span, JOIN, self._began_ns, ended_ns, feed, (), about))
