"""What a canary and live have shown since it began to answer, and what viewers did with it."""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from experiments.lifecycle import Standing
from experiments.served import ServedRates
from recsys.consumer import UNREADABLE, Consumer
from recsys.hashing import Id, key_of
from recsys.log import Log
from recsys.promotion_config import PromotionConfig
from recsys.records import EXAMPLES
from training.by_time import first_at

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


class Shown:
    """Fills ``rates``. ``live``: line/epoch of what the canary is compared with."""

    def __init__(
        self, log: Log, canary: Standing, live: str, labels: Sequence[str], rules: PromotionConfig
    ) -> None:
        self.canary = canary.line
        self.rates = ServedRates(labels, rules.alpha, rules.canary_examples)
        self._ours, self._theirs = f"{canary.line}/0", live
        self._since_ms = canary.since_ms
        self._settle_ms = int(1000 * rules.settle_s)
        self._labels = len(labels)
        from_ms, partitions = self._since_ms - _MARGIN_MS, range(log.partitions(EXAMPLES))
        places = {p: first_at(log, EXAMPLES, p, from_ms, _closed_ms) for p in partitions}
        self._consumer = Consumer(log, EXAMPLES, list(places), places)
        self._waiting: list[_Row] = []
        self._first_ms: int | None = None  # when the canary first showed something
        self._newest_ms = 0

    def read(self) -> None:
        """Takes what is new, and counts what has settled."""
        for _ in range(_POLLS):  # a few at a time: whoever decides has other things to look at
            records = self._consumer.poll(_READ)
            if not records:
                break
            for _, record in records:
                self._take(record.value)
        if self._first_ms is None:  # what live showed before the canary's first doesn't count
            self._waiting.clear()
            return
        first_ms, until_ms = self._first_ms, self._newest_ms - self._settle_ms
        settled = [row for row in self._waiting if first_ms <= row.shown_ms <= until_ms]
        self._waiting = [row for row in self._waiting if row.shown_ms > until_ms]
        if settled:
            _, users, ours, labels, ranked = zip(*settled, strict=True)
            self.rates.add(
                np.array(users, np.int64), np.array(ours), np.array(labels), np.array(ranked)
            )

    def _take(self, value: bytes) -> None:
        try:
            its: Any = _example.decode(value)
        except UNREADABLE:
            return
        self._newest_ms = max(self._newest_ms, its.closed_ms)
        ours = its.served_by == self._ours
        late = its.closed_ms - its.shown_ms > self._settle_ms or its.shown_ms < self._since_ms
        whole = len(its.labels) >= self._labels
        if its.correction or late or not whole or not (ours or its.served_by == self._theirs):
            return
        if ours and (self._first_ms is None or its.shown_ms < self._first_ms):
            self._first_ms = its.shown_ms
        labels = its.labels[: self._labels]
        row = _Row(its.shown_ms, key_of("user", its.user_id), ours, labels, bool(its.predicted))
        self._waiting.append(row)


def _closed_ms(example: bytes) -> int:
    return _closed.decode(example).closed_ms


class _Closed(msgspec.Struct):
    closed_ms: int = 0


_closed = msgspec.msgpack.Decoder(_Closed)
_example = msgspec.msgpack.Decoder(_Example)
