"""Converts an example, or a correction of one, into increments of a user's metric sums."""

from collections.abc import Iterable, Sequence

import msgspec

from experiments.assignment.design import SHOWN, WATCH
from recsys.events.event_types import Stamp
from recsys.events.hashing import Id
from recsys.events.records import unpack
from recsys.log.protocol import Record
from recsys.process.log_consumer import decoded
from training.joining.sampling import represented_examples


class ShownList(msgspec.Struct, tag="impression", tag_field="type"):
    """Fields of an impression that experiments read. ``teams``, ``shares``: of an interleaved one, by
    rank."""

    request_id: str
    user_id: Id
    time_ms: int
    surface: str = "feed"
    teams: list[str] = []
    shares: list[float] = []
    stamp: Stamp | None = None


class ShownItem(msgspec.Struct):
    """Fields of an example that experiments read; features are skipped."""

    user_id: Id
    shown_ms: int
    closed_ms: int
    labels: list[float]
    request_id: str = ""
    watch_ms: int = 0
    correction: bool = False
    previous: list[float] = []
    sampling_rate: float = msgspec.field(default=1.0, name="kept")
    sampled_out: bool = False
    stamp: Stamp | None = None


def metric_increments(item: ShownItem, sums: Sequence[str], labels: Sequence[str]) -> list[float]:
    """The increment of each sum, in the order of ``sums``. An example without engagement represents
    1 / sampling_rate examples. One that is engaged with later represents itself from then on, sampled or not,
    so sums are unbiased. Watch time is that of the first record, which others represent where it was sampled
    out."""
    previous = item.previous or [0.0] * len(item.labels)
    if not item.correction:
        weight = represented_examples(item.labels, item.sampling_rate, item.sampled_out)
        watched = 0.0 if item.sampled_out else weight * item.watch_ms / 1000
        unlabelled = {SHOWN: weight, WATCH: watched}
    else:
        first = any(item.labels) and not any(previous) and not item.sampled_out
        unlabelled = {SHOWN: 1 - 1 / item.sampling_rate if first else 0.0, WATCH: 0.0}
    increments = []
    for name in sums:
        if name in unlabelled:
            increments.append(unlabelled[name])
            continue
        at = labels.index(name)
        before = _at(previous, at) if item.correction else 0.0
        increments.append(_at(item.labels, at) - before)
    return increments


def closed_ms_of(example: bytes) -> int:
    """Close time of an example or a tombstone, for a search by time."""
    return unpack(example, _Closed).closed_ms


def first_closed_ms(examples: Iterable[Record]) -> int:
    """Close time of the first readable example; 0 without any."""
    return next((closed.closed_ms for _, closed in decoded(examples, _Closed)), 0)


def _at(values: Sequence[float], index: int) -> float:
    return values[index] if index < len(values) else 0.0


class _Closed(msgspec.Struct):
    closed_ms: int = 0
