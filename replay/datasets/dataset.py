"""Interface of a data set: events in time order, and the facts that are needed to learn from them.

A data set knows nothing of features or models; it never looks ahead (no statistics over the whole log).
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from recsys.events.event_types import Event
from recsys.events.field_schema import Schema


class DataError(ValueError):
    """Unreadable data set: file, line and field, and the expectation there."""

    def __init__(
        self, file: Path | str, expected: str, *, line: int | None = None, field: str | None = None
    ) -> None:
        self.file, self.line, self.field, self.expected = str(file), line, field, expected
        place = f"{file}:{line}" if line is not None else f"{file}"
        super().__init__(f"{place}: {field}: {expected}" if field else f"{place}: {expected}")


class Dataset(Protocol):
    """A log of past events. ``events`` may be called again and starts from the beginning. Its impressions are
    ``shown`` where all of their items were on screen."""

    name: str
    window_s: float  # event time after which an impression without a label is a negative
    utc_offset_h: float  # begin of its days

    @property
    def dead_letters(self) -> Counter[str]:
        """Lines that the last ``events`` skipped, by reason."""

    @property
    def repeats(self) -> int:
        """Repeated events that the last ``events`` dropped."""

    @property
    def labels(self) -> list[str]:
        """Engagement kinds, the most important first."""

    @property
    def schema(self) -> Schema:
        """Names and kinds of the fields; an event log without ``fields`` is scanned for them once."""

    def events(self, from_ms: int | None = None, until_ms: int | None = None) -> Iterator[Event]:
        """Events with ``from_ms`` ≤ time < ``until_ms``, in time order; items and users known at the
        beginning come first. Items and users from before ``from_ms`` are included: they are state."""

    def warmup(self) -> Iterable[Event]:
        """Events from before the log, in time order, to warm up sessions and counters; often none.
        Its ``fold_into(player)``, if there is one, folds them at once, or returns False. Its ``viewers``, if
        there are any, are those of later events: nobody asks for another's session."""
