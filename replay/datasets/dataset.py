"""What a data set is: events in time order, with what must be known to learn from them.

A data set knows nothing of features or models; it never looks ahead (no statistics over the whole log).
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from recsys.events.event_types import Event
from recsys.events.field_schema import Schema


class DataError(ValueError):
    """A data set that cannot be read: which file, line and field, and what was expected there."""

    def __init__(
        self, file: Path | str, expected: str, *, line: int | None = None, field: str | None = None
    ) -> None:
        self.file, self.line, self.field, self.expected = str(file), line, field, expected
        place = f"{file}:{line}" if line is not None else f"{file}"
        super().__init__(f"{place}: {field}: {expected}" if field else f"{place}: {expected}")


class Dataset(Protocol):
    """A log of the past. ``events`` may be called again and starts from the beginning."""

    name: str
    labels: list[str]  # engagement kinds, the one that matters most first
    window_s: float  # event time after which an impression without a label is a negative
    all_shown: bool  # what was served was all shown
    vectors: dict[str, int]  # fields that are vectors, with their length
    utc_offset_h: float  # where its days begin
    dead_letters: Counter[str]  # what the last ``events`` skipped, by reason
    repeats: int  # how many repeats the last ``events`` dropped

    @property
    def schema(self) -> Schema:
        """Names and kinds of the fields; an event log without ``fields`` is scanned for them once."""

    def events(self, from_ms: int | None = None, until_ms: int | None = None) -> Iterator[Event]:
        """Events with ``from_ms`` ≤ time < ``until_ms``, in time order; items and users known at the
        beginning come first. Items and users from before ``from_ms`` come too: they are state."""

    def warmup(self) -> Iterator[Event]:
        """Events from before the log, in time order, to warm sessions and counters up; often none."""
