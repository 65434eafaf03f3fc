"""Reads the impressions of two lines and their labels: a canary and live over the same time, or a new live
line and its predecessor."""

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from experiments.promotion.canary_engagement import EngagementRates
from experiments.promotion.guard import engagement_rates
from experiments.promotion.lifecycle import CandidateState
from recsys.config.promotion_config import PromotionConfig
from recsys.events.control_records import Live
from recsys.events.hashing import Id, key_of
from recsys.events.records import EXAMPLES
from recsys.log.protocol import Log
from recsys.process.log_consumer import UNREADABLE, Consumer
from training.lines.offset_lookup import first_at
from training.outcomes.shown_item import closed_ms_of

BEFORE_MS: Final = (
    1_800_000  # compared time before a line was live; if longer, the times differ more
)
_READ: Final = 500
_POLLS: Final = 20  # per call: the director has other work
_MARGIN_MS: Final = 60_000  # examples of one partition are nearly in the order of their times


class _Example(msgspec.Struct):
    user_id: Id
    labels: list[float]
    shown_ms: int
    closed_ms: int
    served_by: str = ""
    correction: bool = False
    predicted: bytes = b""


class _Row(NamedTuple):
    shown_ms: int
    user: int
    is_own: bool
    labels: list[float]
    ranked: bool


class SettledExamples:
    """Examples of two lines that closed within ``settle_s`` of being shown. ``own``, ``other``: line/epoch.

    Slower ones count for neither: quick swipes close first, so the line that began last would look worse.
    """

    def __init__(
        self, log: Log, own: str, other: str, since_ms: int, labels: int, rules: PromotionConfig
    ) -> None:
        self._own, self._other, self._labels, self._since_ms = own, other, labels, since_ms
        self._settle_ms = int(1000 * rules.settle_s)
        from_ms, partitions = since_ms - _MARGIN_MS, range(log.partitions(EXAMPLES))
        offsets = {p: first_at(log, EXAMPLES, p, from_ms, closed_ms_of) for p in partitions}
        self._consumer = Consumer(log, EXAMPLES, list(offsets), offsets)
        self._waiting: list[_Row] = []
        self.first_ms: int | None = None  # when the own line first showed an item
        self._newest_ms = 0
        self.not_finite = 0  # predictions of the own line, settled or not

    def read(self) -> list[_Row]:
        """Reads new examples; returns those that have settled."""
        for _ in range(_POLLS):
            records = self._consumer.poll(_READ)
            if not records:
                break
            for _, record in records:
                self._take(record.value)
        until_ms = self._newest_ms - self._settle_ms
        settled = [row for row in self._waiting if row.shown_ms <= until_ms]
        self._waiting = [row for row in self._waiting if row.shown_ms > until_ms]
        return settled

    def _take(self, value: bytes) -> None:
        try:
            example: Any = _example.decode(value)
        except UNREADABLE:
            return
        self._newest_ms = max(self._newest_ms, example.closed_ms)
        is_own, shown_ms = example.served_by == self._own, example.shown_ms
        if example.correction or not (is_own or example.served_by == self._other):
            return
        is_finite = _is_finite(example.predicted)
        self.not_finite += is_own and not is_finite
        late = example.closed_ms - shown_ms > self._settle_ms or shown_ms < self._since_ms
        if late or len(example.labels) < self._labels:
            return
        if is_own and (self.first_ms is None or shown_ms < self.first_ms):
            self.first_ms = shown_ms
        labels = example.labels[: self._labels]
        ranked = is_finite and len(example.predicted) > 0
        self._waiting.append(
            _Row(shown_ms, key_of("user", example.user_id), is_own, labels, ranked)
        )


class CanaryImpressions:
    """Counts in ``rates`` what a canary has shown since it began to answer, beside ``live`` (line/epoch)."""

    def __init__(
        self,
        log: Log,
        canary: CandidateState,
        live: str,
        labels: Sequence[str],
        rules: PromotionConfig,
    ) -> None:
        self.line = canary.line
        self.rates = EngagementRates(labels, rules.alpha, rules.canary_examples)
        own, since_ms = f"{canary.line}/0", canary.since_ms
        self._settled = SettledExamples(log, own, live, since_ms, len(labels), rules)

    def read(self) -> None:
        """Counts newly settled examples."""
        rows, first_ms = self._settled.read(), self._settled.first_ms
        # Items that live showed before the canary's first don't count.
        _count(self.rates, [r for r in rows if first_ms is not None and r.shown_ms >= first_ms])


class GuardImpressions:
    """Counts in ``rates`` what a new live line has shown, beside what the previous epoch showed in the half
    hour before."""

    def __init__(
        self,
        log: Log,
        guard: CandidateState,
        live: Live,
        labels: Sequence[str],
        rules: PromotionConfig,
    ) -> None:
        self.line = guard.line
        self.rates = engagement_rates(labels, rules)
        own, other = f"{live.line}/{live.epoch}", f"{live.line}/{live.of}"
        since_ms = live.time_ms - BEFORE_MS
        self._settled = SettledExamples(log, own, other, since_ms, len(labels), rules)

    @property
    def not_finite(self) -> int:
        """Number of examples with a prediction of live that isn't finite."""
        return self._settled.not_finite

    def read(self) -> None:
        """Counts newly settled examples."""
        _count(self.rates, self._settled.read())


def _count(rates: EngagementRates, settled: Sequence[_Row]) -> None:
    if settled:
        _, users, is_own, labels, ranked = zip(*settled, strict=True)
        rates.add(np.array(users, np.int64), np.array(is_own), np.array(labels), np.array(ranked))


def _is_finite(predicted: bytes) -> bool:
    """Whether all predictions for an item are finite; true if no ranker scored it."""
    if len(predicted) % 4:
        return True
    return math.isfinite(float(np.frombuffer(predicted, np.float32).sum(dtype=np.float64)))


_example = msgspec.msgpack.Decoder(_Example)
