"""What two lines have shown, and what viewers did with it: a canary's and live's lists in the same time, or
those of a new live line and of the one before it."""

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

BEFORE_MS: Final = (
    1_800_000  # of what was shown before a line was live: longer, and times differ more
)
_READ: Final = 500
_POLLS: Final = 20
_MARGIN_MS: Final = 60_000  # examples of one partition come nearly in the order of their times


class _Example(msgspec.Struct):
    """What is read of an example."""

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
    ours: bool
    labels: list[float]
    ranked: bool


class Settled:
    """Examples of two lines, each known ``settle_s`` after it was shown. ``ours``, ``theirs``: line/epoch.

    What took longer doesn't count, for both alike: quick swipes come first, so whatever began last would look
    worse.
    """

    def __init__(
        self, log: Log, ours: str, theirs: str, since_ms: int, labels: int, rules: PromotionConfig
    ) -> None:
        self._ours, self._theirs, self._labels, self._since_ms = ours, theirs, labels, since_ms
        self._settle_ms = int(1000 * rules.settle_s)
        from_ms, partitions = since_ms - _MARGIN_MS, range(log.partitions(EXAMPLES))
        places = {p: first_at(log, EXAMPLES, p, from_ms, _closed_ms) for p in partitions}
        self._consumer = Consumer(log, EXAMPLES, list(places), places)
        self._waiting: list[_Row] = []
        self.first_ms: int | None = None  # when ours first showed something
        self._newest_ms = 0
        self.not_finite = 0  # of our predictions, settled or not

    def read(self) -> list[_Row]:
        """Takes what is new, and returns what has settled."""
        for _ in range(_POLLS):  # a few at a time: whoever decides has other things to look at
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
            its: Any = _example.decode(value)
        except UNREADABLE:
            return
        self._newest_ms = max(self._newest_ms, its.closed_ms)
        ours = its.served_by == self._ours
        if its.correction or not (ours or its.served_by == self._theirs):
            return
        is_finite = _is_finite(its.predicted)
        self.not_finite += ours and not is_finite
        late = its.closed_ms - its.shown_ms > self._settle_ms or its.shown_ms < self._since_ms
        if late or len(its.labels) < self._labels:
            return
        if ours and (self.first_ms is None or its.shown_ms < self.first_ms):
            self.first_ms = its.shown_ms
        labels = its.labels[: self._labels]
        ranked = is_finite and len(its.predicted) > 0
        self._waiting.append(_Row(its.shown_ms, key_of("user", its.user_id), ours, labels, ranked))


class CanaryImpressions:
    """Fills ``rates`` with what a canary has shown since it began to answer, beside ``live`` (line/epoch)."""

    def __init__(
        self, log: Log, canary: CandidateState, live: str, labels: Sequence[str], rules: PromotionConfig
    ) -> None:
        self.line = canary.line
        self.rates = EngagementRates(labels, rules.alpha, rules.canary_examples)
        ours, since_ms = f"{canary.line}/0", canary.since_ms
        self._settled = Settled(log, ours, live, since_ms, len(labels), rules)

    def read(self) -> None:
        """Takes what is new, and counts what has settled."""
        rows, first_ms = self._settled.read(), self._settled.first_ms
        # What live showed before the canary's first doesn't count.
        _count(self.rates, [r for r in rows if first_ms is not None and r.shown_ms >= first_ms])


class GuardImpressions:
    """Fills ``rates`` with what a live line has shown since it is live, beside what the epoch before showed
    in the half hour before that."""

    def __init__(
        self, log: Log, guard: CandidateState, live: Live, labels: Sequence[str], rules: PromotionConfig
    ) -> None:
        self.line = guard.line
        self.rates = engagement_rates(labels, rules)
        ours, theirs = f"{live.line}/{live.epoch}", f"{live.line}/{live.of}"
        since_ms = live.time_ms - BEFORE_MS
        self._settled = Settled(log, ours, theirs, since_ms, len(labels), rules)

    @property
    def not_finite(self) -> int:
        """Examples of which live predicted something that isn't a finite number."""
        return self._settled.not_finite

    def read(self) -> None:
        """Takes what is new, and counts what has settled."""
        _count(self.rates, self._settled.read())


def _count(rates: EngagementRates, settled: Sequence[_Row]) -> None:
    if settled:
        _, users, ours, labels, ranked = zip(*settled, strict=True)
        rates.add(np.array(users, np.int64), np.array(ours), np.array(labels), np.array(ranked))


def _is_finite(predicted: bytes) -> bool:
    """Of all that was predicted for an item; of one that no ranker scored nothing was."""
    if len(predicted) % 4:
        return True
    return math.isfinite(float(np.frombuffer(predicted, np.float32).sum(dtype=np.float64)))


def _closed_ms(example: bytes) -> int:
    return _closed.decode(example).closed_ms


class _Closed(msgspec.Struct):
    closed_ms: int = 0


_closed = msgspec.msgpack.Decoder(_Closed)
_example = msgspec.msgpack.Decoder(_Example)
