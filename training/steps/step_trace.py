"""Emits tracing spans of steps: traced examples that the sequencer put into one, and learning of a step."""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

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

_KEPT: Final = 20_000  # waiting examples of a partition


class SequenceTrace:
    """Traces the sequencer's loop: arrived examples, and steps that were cut and appended."""

    def __init__(self, tracer: SpanRecorder, now_ns: Callable[[], int]) -> None:
        self.tracer, self._now_ns = tracer, now_ns
        self._waiting: dict[int, deque[tuple[int, str, int]]] = {}

    def arrived(self, partition: int, offset: int, request_id: str) -> None:
        if request_id and self.tracer.is_sampled(request_id):
            waiting = self._waiting.setdefault(partition, deque(maxlen=_KEPT))
            waiting.append((offset, request_id, self._now_ns()))

    def forget(self) -> None:
        """Clears the waiting examples: they arrive again, as the loop returns to its place on the log."""
        self._waiting.clear()

    def cut(self, steps: Iterable[Step]) -> None:
        """Emits the spans of steps whose records are appended."""
        ended_ns = self._now_ns()
        for step in steps:
            links = (step_span(step.line, step.epoch, step.step),)
            attributes: SpanAttributes
            attributes = {"line": step.line, "epoch": step.epoch, "step": step.step}
            for part in step.ranges:
                waiting = self._waiting.get(part.partition)
                while waiting and waiting[0][0] < part.stop:
                    offset, request_id, since_ns = waiting.popleft()
                    span_id = request_span(request_id, SEQUENCE, part.partition, offset)
                    parent = request_span(request_id, JOIN, part.partition, offset)
                    times = (since_ns, ended_ns)
                    self.tracer.record(Span(span_id, SEQUENCE, *times, parent, links, attributes))


def trace_step(
    tracer: SpanRecorder, version: tuple[str, int, int], examples: int, began_ns: int, ended_ns: int
) -> None:
    """Emits one span for a learned step (line, epoch, step); the traces of its examples link to it."""
    line, epoch, step = version
    attributes: SpanAttributes = {"line": line, "epoch": epoch, "step": step, "examples": examples}
    span_id = step_span(line, epoch, step)
    tracer.record(Span(span_id, STEP, began_ns, ended_ns, attributes=attributes))
