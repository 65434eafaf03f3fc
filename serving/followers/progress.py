"""Follows ``steps``, and the ends of ``events`` and ``examples``: how fast a replica is, and how fresh."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Final

import msgspec

from experiments.promotion.lifecycle import Lifecycle
from recsys.clock import is_due
from recsys.events.records import EVENTS, EXAMPLES, STEPS, Step
from recsys.log.protocol import Log
from serving.followers.follower import Follower
from serving.followers.weights import AppliedStep, WeightsFollower
from serving.replica.replica import Replica
from serving.tracing.freshness import Freshness, Rate
from serving.tracing.swipe_traces import SwipeTraces

_STEPS_KEPT: Final = 2_000
_ENDS_EVERY_MS: Final = 1_000


@dataclass
class ProgressChange:
    """Records of steps; about once a second also the ends of ``events``, summed, and ``examples``, by
    partition."""

    steps: list[Step] = field(default_factory=list)
    events_end: int | None = None
    example_ends: list[int] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.steps) or self.events_end is not None


class ProgressFollower(Follower[ProgressChange]):
    """Measures rates, freshness and staleness; no answer depends on it. Reads no example."""

    at_once: ClassVar = 500

    def __init__(
        self, log: Log, replica: Replica, weights: WeightsFollower, lifecycle: Lifecycle,
        now_ms: Callable[[], int], traces: SwipeTraces | None = None,
    ) -> None:  # fmt: skip
        """``weights``: whose applied steps are measured. ``traces``: for applied steps."""
        super().__init__()
        self._log, self._replica, self._weights, self._lifecycle = log, replica, weights, lifecycle
        self._now_ms, self._traces = now_ms, traces
        self.freshness, self.examples, self.events = Freshness(), Rate(), Rate()
        self._learned = 0  # examples
        self._unlearned_ms: int | None = None  # since when examples have been waiting for a step
        self._waiting: dict[int, Step] = {}  # by number, for their weights
        self.offset = log.end(STEPS, 0)
        # Where the examples after the newest applied step begin, by partition.
        self._learned_to = [log.end(EXAMPLES, p) for p in range(log.partitions(EXAMPLES))]
        self._ended_ms = 0
        self._change = ProgressChange()

    def read(self, limit: int) -> ProgressChange:
        log, change = self._log, self._change
        for record in log.read(STEPS, 0, self.offset, limit):
            self.offset = record.offset + 1
            step = self.decoded(record.value, _step)
            if step is not None:
                change.steps.append(step)
        now_ms = self._now_ms()
        if is_due(now_ms, self._ended_ms + _ENDS_EVERY_MS, _ENDS_EVERY_MS):
            self._ended_ms = now_ms
            change.events_end = sum(log.end(EVENTS, p) for p in range(log.partitions(EVENTS)))
            change.example_ends = [log.end(EXAMPLES, p) for p in range(log.partitions(EXAMPLES))]
        return change

    def apply(self, change: ProgressChange) -> None:
        now_ms, waiting = self._now_ms(), self._waiting
        for record in change.steps:
            waiting[record.step] = record
        while len(waiting) > _STEPS_KEPT:
            del waiting[next(iter(waiting))]
        for applied in self._weights.applied:
            self._measure(applied, now_ms)
        if any(end > to for end, to in zip(change.example_ends, self._learned_to, strict=False)):
            self._unlearned_ms = min(self._unlearned_ms or now_ms, now_ms)
        if change.events_end is not None:
            self.events.observe(change.events_end, now_ms)
            self.examples.observe(self._learned, now_ms)
        self._change = ProgressChange()

    def _measure(self, applied: AppliedStep, now_ms: int) -> None:
        self._unlearned_ms = None
        # Steps that a snapshot held are served with this one.
        for record in [self._waiting.pop(n) for n in list(self._waiting) if n <= applied.step]:
            for learned in record.ranges:
                self._learned_to[learned.partition] = learned.stop
            if record.line != self._replica.line:
                continue
            self._learned += record.examples
            own = self.freshness.learned(record.views, now_ms)
            if self._traces:
                self._traces.applied(record, applied.began_ns, applied.ended_ns, own)

    def stale(self, now_ms: int) -> bool:
        """Whether the weights are too old: examples have waited for a step for ``serve.stale_s``. Without new
        examples, weights don't age, nor do those of a candidate that doesn't learn."""
        state = self._lifecycle.candidates.get(self._replica.line)
        is_frozen = state is not None and not state.candidate.learns
        if self._unlearned_ms is None or self._replica.step == 0 or is_frozen:
            return False
        return now_ms - self._unlearned_ms > 1000 * self._replica.config.serve.stale_s


_step = msgspec.msgpack.Decoder(Step)
