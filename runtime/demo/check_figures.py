"""What `recsys demo --check` makes of its measurements: figures with their bars. Pure."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from recsys.events.records import Range, Step

_DOMINANT: Final = (
    0.15  # a topic of more than this share of everybody's lists can't be tripled fairly
)


class Figure(msgspec.Struct, frozen=True):
    """A measured value and the bar that it has to keep; without a bar it is told for the record."""

    value: float | int | str | list[float] | None
    bar: float | int | str | None = None
    ok: bool = True


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The one JSON object that the check prints."""

    ok: bool
    figures: dict[str, Figure]
    seconds: float
    data: str
    log: str


def at_most(value: float | None, bar: float) -> Figure:
    """Not measured is not kept."""
    return Figure(_rounded(value), bar, value is not None and value <= bar)


def at_least(value: float | None, bar: float) -> Figure:
    return Figure(_rounded(value), bar, value is not None and value >= bar)


def equal(value: int, bar: int) -> Figure:
    return Figure(value, bar, value == bar)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest of the values that at least ``share`` (0 to 1) of them don't exceed; None of none."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def median(values: Sequence[float]) -> float | None:
    return percentile(values, 0.5)


def share_of(tag: str, lists: Iterable[Sequence[str]]) -> float:
    """The share of items that have a tag, given the tags of each."""
    there = [tag in tags for tags in lists]
    return sum(there) / len(there) if there else 0.0


def ratio(before: float, after: float, items: int) -> float:
    """How many times as much of a topic; where there was none before, one item counts as there."""
    return after / max(before, 1 / items)


def usual_topics(lists: Sequence[Sequence[str]], count: int) -> list[str]:
    """Topics that a new viewer meets, given the tags of what they are shown: the commonest, but those that
    dominate. Seldom ones fill up where there are too few."""
    shares = {tag: share_of(tag, lists) for tags in lists for tag in tags}
    ordered = sorted(shares, key=lambda tag: (-shares[tag], tag))
    return [tag for tag in ordered if shares[tag] <= _DOMINANT][:count]


def learned_at(
    places: Mapping[tuple[str, str], tuple[int, int]], steps: Sequence[Step]
) -> dict[tuple[str, str], int]:
    """The step that learned each example, given (request, item) → (partition, offset); those that were."""
    by_partition: dict[int, list[tuple[Range, int]]] = {}
    for step in sorted(steps, key=lambda step: step.step):
        for part in step.ranges:
            by_partition.setdefault(part.partition, []).append((part, step.step))
    found = {}
    for key, (partition, offset) in places.items():
        for part, number in by_partition.get(partition, ()):
            if part.start <= offset < part.stop:
                found[key] = number
                break
    return found


def served_delays(
    acknowledged: Mapping[tuple[str, str], float],
    steps: Mapping[tuple[str, str], int],
    answers: Sequence[tuple[float, int]],
) -> list[float]:
    """Milliseconds from each acknowledgement to the first answer of a version that has learned from it.

    ``answers`` are (when it came in seconds, its step), in order. A view that no answer had learned from is
    infinitely late: it isn't left out.
    """
    delays = []
    for key, at_s in acknowledged.items():
        step = steps.get(key)
        came = (when for when, its in answers if step is not None and when >= at_s and its >= step)
        delays.append((next(came, math.inf) - at_s) * 1000)
    return delays


def prequential(sums: Iterable[Mapping[str, float]], label: str) -> tuple[float, float] | None:
    """A label's mean prequential loss over steps, from the sums that they published, and the loss that the
    label's mean rate alone would have had, told beforehand; None of no examples."""
    loss = happened = examples = 0.0
    for step in sums:
        loss += step.get(f"loss.{label}", 0.0)
        happened += step.get(f"happened.{label}", 0.0)
        examples += step.get("examples", 0.0)
    if not examples:
        return None
    rate = min(max(happened / examples, 1e-9), 1 - 1e-9)
    return loss / examples, -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)
