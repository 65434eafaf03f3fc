"""Figures of `recsys demo --check` with the bars that they have to meet. Pure."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from recsys.events.records import Range, Step

_DOMINANT: Final = 0.15  # a topic with a larger share of all lists can hardly triple


class Figure(msgspec.Struct, frozen=True):
    """A measured value and the bar that it has to meet; without a bar it is for information."""

    value: float | int | str | list[float] | None
    bar: float | int | str | None = None
    ok: bool = True


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """JSON object that the check prints."""

    ok: bool
    figures: dict[str, Figure]
    seconds: float
    data: str
    log: str


def at_most(value: float | None, bar: float) -> Figure:
    """A figure that fails where it wasn't measured."""
    return Figure(rounded(value), bar, value is not None and value <= bar)


def at_least(value: float | None, bar: float) -> Figure:
    return Figure(rounded(value), bar, value is not None and value >= bar)


def equal(value: int, bar: int) -> Figure:
    return Figure(value, bar, value == bar)


def rounded(value: float | None, digits: int = 3) -> float | None:
    return None if value is None else round(value, digits)


def percentile(values: Sequence[float], share: float) -> float | None:
    """Smallest value that a ``share`` (0 to 1) of the values doesn't exceed; None without values."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def median(values: Sequence[float]) -> float | None:
    return percentile(values, 0.5)


def share_of(tag: str, lists: Iterable[Sequence[str]]) -> float:
    """Share of items that have a tag, given the tags of each item."""
    has_tag = [tag in tags for tags in lists]
    return sum(has_tag) / len(has_tag) if has_tag else 0.0


def longest_run(tag: str, lists: Iterable[Sequence[str]]) -> int:
    """Most items with a tag one after the other, given the tags of each item."""
    longest = current = 0
    for tags in lists:
        current = current + 1 if tag in tags else 0
        longest = max(longest, current)
    return longest


def ratio(before: float, after: float, items: int) -> float:
    """Growth factor of a topic's share; a share of 0 before counts as one item."""
    return after / max(before, 1 / items)


def common_topics(lists: Sequence[Sequence[str]], count: int) -> list[str]:
    """Most common topics of a new viewer's items, given each item's tags; leaves out dominant ones."""
    shares = {tag: share_of(tag, lists) for tags in lists for tag in tags}
    ordered = sorted(shares, key=lambda tag: (-shares[tag], tag))
    return [tag for tag in ordered if shares[tag] <= _DOMINANT][:count]


def learned_at(
    places: Mapping[tuple[str, str], tuple[int, int]], steps: Sequence[Step]
) -> dict[tuple[str, str], int]:
    """Maps (request, item) to the step that learned its example, given the example's place on the log."""
    by_partition: dict[int, list[tuple[Range, int]]] = {}
    for step in sorted(steps, key=lambda step: step.step):
        for part in step.ranges:
            by_partition.setdefault(part.partition, []).append((part, step.step))
    learned = {}
    for key, (partition, offset) in places.items():
        for part, number in by_partition.get(partition, ()):
            if part.start <= offset < part.stop:
                learned[key] = number
                break
    return learned


def served_delays(
    acknowledged: Mapping[tuple[str, str], float],
    steps: Mapping[tuple[str, str], int],
    answers: Sequence[tuple[float, int]],
) -> list[float]:
    """Milliseconds from each view's acknowledgement to the first answer by a model that had learned it.

    ``answers`` are (time in seconds, step), in order. An unlearned view counts as infinitely late.
    """
    delays = []
    for key, at_s in acknowledged.items():
        step = steps.get(key)
        times = (t for t, answered in answers if step is not None and t >= at_s and answered >= step)
        delays.append((next(times, math.inf) - at_s) * 1000)
    return delays


def prequential(sums: Iterable[Mapping[str, float]], label: str) -> tuple[float, float] | None:
    """Mean prequential log loss of a label over steps, and that of a constant prediction of its mean rate.

    ``sums``: published per step. None without examples.
    """
    loss = happened = examples = 0.0
    for step in sums:
        loss += step.get(f"loss.{label}", 0.0)
        happened += step.get(f"happened.{label}", 0.0)
        examples += step.get("examples", 0.0)
    if not examples:
        return None
    rate = min(max(happened / examples, 1e-9), 1 - 1e-9)
    return loss / examples, -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)
