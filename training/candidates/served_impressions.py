"""Reads impressions of two lines with their labels."""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np

from experiments.evidence.verdict import EngagementRates
from experiments.promotion.kinds.line_state import ServedLines
from recsys.config.system_config import Config
from recsys.events.hashing import Id, key_of
from recsys.events.records import CLICK_LIST, EXAMPLES
from recsys.log.protocol import Log
from recsys.process.log_consumer import decoded
from training.joining.sampling import represented_examples
from training.lines.offset_lookup import consumer_from
from training.outcomes.shown_item import closed_ms_of

_READ: Final = 500
_POLLS: Final = 20  # per call: the director has other work
_MARGIN_MS: Final = 60_000  # examples of one partition are nearly in the order of their times


class _Example(msgspec.Struct):
    user_id: Id
    labels: list[float]
    shown_ms: int
    closed_ms: int
    request_id: str = ""
    served_by: str = ""
    correction: bool = False
    predicted: bytes = b""
    sampling_rate: float = msgspec.field(default=1.0, name="kept")
    sampled_out: bool = False


class _Row(NamedTuple):
    shown_ms: int
    user: int
    is_own: bool
    labels: list[float]
    ranked: bool
    weight: float


class ServedImpressions:
    """Counts in ``rates`` the impressions of two lines that closed within ``settle_s`` of being shown: quick
    swipes close first, so the line that began last would otherwise look worse.
    """

    def __init__(self, log: Log, lines: ServedLines, labels: Sequence[str], config: Config) -> None:
        rules = config.promotion
        self.rates = EngagementRates(labels, lines.alpha, rules.canary_examples, config.policy.unwanted)
        self._lines, self._labels, self._settle_ms = lines, len(labels), int(1000 * rules.settle_s)
        self._consumer = consumer_from(log, EXAMPLES, lines.since_ms - _MARGIN_MS, closed_ms_of)
        self._waiting: list[_Row] = []
        self._first_ms = math.inf  # when the own line first showed an item
        self._newest_ms = 0
        self.not_finite = 0  # examples, settled or not, with such a prediction of the own line

    def read(self) -> None:
        """Reads new examples; counts those that have settled."""
        for _ in range(_POLLS):
            records = self._consumer.poll(_READ)
            if not records:
                break
            for _, example in decoded((record for _, record in records), _Example):
                self._take(example)
        until_ms = self._newest_ms - self._settle_ms
        settled = [row for row in self._waiting if row.shown_ms <= until_ms]
        self._waiting = [row for row in self._waiting if row.shown_ms > until_ms]
        if self._lines.from_first:
            settled = [row for row in settled if row.shown_ms >= self._first_ms]
        if settled:
            _, *columns = zip(*settled, strict=True)
            self.rates.add(*map(np.array, columns))

    def _take(self, example: _Example) -> None:
        self._newest_ms = max(self._newest_ms, example.closed_ms)
        is_own, shown_ms = example.served_by == self._lines.own, example.shown_ms
        if example.correction or not (is_own or example.served_by == self._lines.other):
            return
        if example.request_id.startswith(CLICK_LIST):
            return
        is_finite = _is_finite(example.predicted)
        self.not_finite += is_own and not is_finite
        late = example.closed_ms - shown_ms > self._settle_ms or shown_ms < self._lines.since_ms
        # An item that was sampled out is represented by others until it is engaged with, as by a correction.
        if late or example.sampled_out or len(example.labels) < self._labels:
            return
        if is_own:
            self._first_ms = min(self._first_ms, shown_ms)
        labels = example.labels[: self._labels]
        ranked = is_finite and len(example.predicted) > 0
        user = key_of("user", example.user_id)
        weight = represented_examples(example.labels, example.sampling_rate, example.sampled_out)
        self._waiting.append(_Row(shown_ms, user, is_own, labels, ranked, weight))


def _is_finite(predicted: bytes) -> bool:
    """Whether all predictions for an item are finite; true if no ranker scored it."""
    if len(predicted) % 4:
        return True
    return math.isfinite(float(np.frombuffer(predicted, np.float32).sum(dtype=np.float64)))
