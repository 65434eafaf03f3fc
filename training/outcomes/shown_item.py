"""One shown item as experiments count it: what an example, or a correction of one, adds to a user's sums."""

from collections.abc import Sequence
from typing import Any

import msgspec

from experiments.assignment.metric import SHOWN, WATCH
from recsys.events.event_types import Stamp
from recsys.events.hashing import Id
from recsys.process.log_consumer import UNREADABLE
from training.joining.sampling import stands_for


class ShownItem(msgspec.Struct):
    """What is read of an example: not its features."""

    user_id: Id
    shown_ms: int
    closed_ms: int
    labels: list[float]
    watch_ms: int = 0
    correction: bool = False
    previous: list[float] = []
    kept: float = 1.0
    sampled_out: bool = False
    stamp: Stamp | None = None


def read_shown(value: bytes) -> ShownItem | None:
    """A record of ``examples``; None for an empty place, or what can't be read."""
    try:
        return _decoder.decode(value)
    except UNREADABLE:
        return None


def values_of(its: ShownItem, sums: Sequence[str], labels: Sequence[str]) -> list[float]:
    """What it adds to each sum, in their order.

    An example without any engagement stands for 1 / kept such, since the others were left out; one that gets
    an engagement later stands for itself from then on, whether it had been kept or not. So sums are right on
    average. Watch time is that of when the example was first told.
    """
    previous = its.previous or [0.0] * len(its.labels)
    engaged = any(its.labels)
    if not its.correction:
        weight = stands_for(its.labels, its.kept, its.sampled_out)
        others = {SHOWN: weight, WATCH: weight * its.watch_ms / 1000}
    else:
        first = engaged and not any(previous) and not its.sampled_out
        others = {SHOWN: 1 - 1 / its.kept if first else 0.0, WATCH: 0.0}
    out = []
    for name in sums:
        if name in others:
            out.append(others[name])
            continue
        at = labels.index(name)
        out.append(_at(its.labels, at) - (_at(previous, at) if its.correction else 0.0))
    return out


def closed_ms_of(example: bytes) -> int:
    """When an example, or an empty place, was closed; for a search by time."""
    closed: int = _closed.decode(example).closed_ms
    return closed


def _at(values: Sequence[float], place: int) -> float:
    return values[place] if place < len(values) else 0.0


class _Closed(msgspec.Struct):
    closed_ms: int = 0


_decoder = msgspec.msgpack.Decoder(ShownItem)
_closed: Any = msgspec.msgpack.Decoder(_Closed)
