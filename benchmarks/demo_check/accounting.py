"""Counts the events, examples and steps on the log and in the archive since a mark. Read-only."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from recsys.events.hashing import Id
from recsys.events.records import DEAD_LETTERS, DELTAS, EVENTS, EXAMPLES, STEPS, Step, unpack
from recsys.log.protocol import Log, read_range
from training.archive.writer import archived_rows

_READ: Final = 2_000
_DERIVED: Final = ":long_view"  # suffix of ids of events that the server derives from views


class _Event(msgspec.Struct):
    type: str
    event_id: str | None = None
    degraded: list[str] = []


class _Example(msgspec.Struct):
    request_id: str
    item_id: Id
    correction: bool = False


class _Delta(msgspec.Struct):
    line: str
    step: int
    part: int
    metrics: dict[str, float] = {}


@dataclass(frozen=True)
class EventCounts:
    """Events on the log since the mark. ``engagements`` counts those that clients sent."""

    places: set[tuple[int, int]]  # partition and offset of each engagement
    impressions: int
    degraded: int

    @property
    def engagements(self) -> int:
        return len(self.places)

    @property
    def total(self) -> int:
        return len(self.places) + self.impressions


class LogAccounting:
    """Reads a log from the ends that its topics had at construction (the mark)."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._mark = {
            (topic, partition): log.end(topic, partition)
            for topic in (EVENTS, EXAMPLES, STEPS)
            for partition in range(log.partitions(topic))
        }

    def events(self) -> EventCounts:
        """Counts distinct client engagements, impressions, and impressions with skipped stages."""
        places: set[tuple[int, int]] = set()
        ids: set[str] = set()
        impressions = degraded = 0
        for partition, offset, value in self._since(EVENTS):
            event = unpack(value, _Event)
            if event.type == "impression":
                impressions += 1
                degraded += bool(event.degraded)
            elif event.type == "engagement":
                name = event.event_id or f"{partition}-{offset}"
                if not name.endswith(_DERIVED) and name not in ids:
                    ids.add(name)
                    places.add((partition, offset))
        return EventCounts(places, impressions, degraded)

    def archived(self, folder: Path, events: EventCounts) -> int:
        """Number of these engagements that are in the archive."""
        columns = ("partition", "offset")
        return len(events.places.intersection(archived_rows(folder, EVENTS, columns)))

    def examples_before(self) -> int:
        """Number of examples on the log at the mark."""
        return sum(
            end - self._log.begin(EXAMPLES, partition)
            for (topic, partition), end in self._mark.items()
            if topic == EXAMPLES
        )

    def examples(self) -> dict[tuple[str, str], tuple[int, int]]:
        """Maps (request, item) to (partition, offset) of its first example."""
        places: dict[tuple[str, str], tuple[int, int]] = {}
        for partition, offset, value in self._since(EXAMPLES):
            example = unpack(value, _Example)
            if not example.correction:
                places.setdefault((example.request_id, str(example.item_id)), (partition, offset))
        return places

    def steps(self) -> list[Step]:
        """Step records since the mark."""
        return [unpack(value, Step) for _, _, value in self._since(STEPS)]

    def metrics(self) -> list[dict[str, float]]:
        """Metrics published with all steps that ``deltas`` still has. The number of examples in the newest
        steps varies with the rate of events, from a few hundred to most of the log."""
        metrics = {}
        for _, _, value in self._read(DELTAS, 0, self._log.begin(DELTAS, 0)):
            delta = unpack(value, _Delta)
            if delta.part == 0:
                metrics[delta.line, delta.step] = delta.metrics
        return list(metrics.values())

    def dead_letters(self) -> int:
        """Number of dead letters, including those before the mark."""
        start = self._log.begin(DEAD_LETTERS, 0)
        return sum(1 for _ in self._read(DEAD_LETTERS, 0, start))

    def _since(self, topic: str) -> Iterator[tuple[int, int, bytes]]:
        for (marked, partition), start in self._mark.items():
            if marked == topic:
                yield from self._read(topic, partition, start)

    def _read(self, topic: str, partition: int, offset: int) -> Iterator[tuple[int, int, bytes]]:
        most = _READ if topic != DELTAS else 20
        for record in read_range(self._log, topic, partition, offset, 1 << 62, most):
            yield partition, record.offset, record.value
