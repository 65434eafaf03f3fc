"""The spans of steps: which traced examples the sequencer put into one, and how a worker learned it."""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from recsys.events.records import Step
from recsys.observability.spans import (
    JOIN,
    SEQUENCE,
    STEP,
    Span,
    SpanAttributes,
    SpanRecorder,
    request_span,
    step_span,
)

_KEPT: Final = 20_000  # of a partition


class SeenExample(msgspec.Struct):
    """All that the sequencer reads of an example while it traces. A place of who is forgotten has no
    request."""

    closed_ms: int
    request_id: str = ""


class SequenceTrace:
    """Of the sequencer's loop: which examples arrived, and which steps were cut and appended."""

    def __init__(self, tracer: SpanRecorder, now_ns: Callable[[], int]) -> None:
        self.tracer, self._now_ns = tracer, now_ns
        self._waiting: dict[int, deque[tuple[int, str, int]]] = {}

    def arrived(self, partition: int, offset: int, request_id: str) -> None:
        if request_id and self.tracer.is_sampled(request_id):
            waiting = self._waiting.setdefault(partition, deque(maxlen=_KEPT))
            waiting.append((offset, request_id, self._now_ns()))

    def forget(self) -> None:
        """They will arrive again: the loop goes back to what stands on the log."""
        self._waiting.clear()

    def cut(self, steps: Iterable[Step]) -> None:
        """The records of these steps are appended."""
        ended_ns = self._now_ns()
        for step in steps:
            linked = step_span(step.line, step.epoch, step.step)
            about: SpanAttributes = {"line": step.line, "epoch": step.epoch, "step": step.step}
            for there in step.ranges:
                waiting = self._waiting.get(there.partition)
                while waiting and waiting[0][0] < there.stop:
                    offset, request_id, since_ns = waiting.popleft()
                    place = request_span(request_id, SEQUENCE, there.partition, offset)
                    parent = request_span(request_id, JOIN, there.partition, offset)
                    self.tracer.record(
                        Span(place, SEQUENCE, since_ns, ended_ns, parent, (linked,), about)
                    )


def tell_learned(
    tracer: SpanRecorder, line: str, epoch: int, step: int, examples: int, began_ns: int, ended_ns: int
) -> None:
    """One span for the step, whatever it learned: the examples' own traces link to it."""
    about: SpanAttributes = {"line": line, "epoch": epoch, "step": step, "examples": examples}
    tracer.record(Span(step_span(line, epoch, step), STEP, began_ns, ended_ns, attributes=about))
