"""What a joiner holds beyond its memory: rows on disk, taken back by id or when they are due.

A spill keeps to the joiner's snapshots. Nothing of a row is changed; it is put, and it is taken. ``mark``
ends a generation, whose number goes into the snapshot, and ``back`` returns to the rows of a generation: of
the newest marked one, or of one of the two before it. So a joiner that was killed anywhere goes back to a
snapshot and finds the rows that belong to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

# Generations before the newest that one can go back to. A part keeps two snapshots, and a kill between mark()
# and its save leaves the newest generation without one.
KEPT: Final = 2
NEVER: Final = (1 << 63) - 1


class Row(NamedTuple):
    """``value`` is the joiner's own business; ``offset`` and ``user_id`` are those of its impression."""

    id: str
    due_ms: int
    offset: int
    user_id: str
    value: bytes


class SpillLost(ValueError):
    """The rows of a snapshot aren't there."""


class Spill(Protocol):
    """Rows by id, each there once. ``len`` is how many there are."""

    def __len__(self) -> int: ...

    def put(self, rows: Sequence[Row]) -> None:
        """Takes rows in, of ids that aren't there."""

    def take(self, id_: str) -> Row | None:
        """Gives a row back, which is then no longer there; None where it isn't."""

    def has(self, id_: str) -> bool:
        """Whether a row is there."""

    def next_ms(self) -> int | None:
        """The lowest ``due_ms`` of those there."""

    def take_due(self, now_ms: int, limit: int) -> list[Row]:
        """Gives back the first rows that are due at ``now_ms``, by (due_ms, id), at most ``limit``."""

    def oldest(self) -> int | None:
        """The lowest offset of those there."""

    def forget(self, user_id: str) -> None:
        """Takes a user's rows. Looks at all there are: it is rare."""

    def mark(self) -> int:
        """Ends a generation, on disk when it returns, and gives its number. 0: nothing was ever put."""

    def back(self, generation: int, rows: int) -> None:
        """Goes back to a generation of so many ``rows``, 0 being empty. Raises SpillLost where it isn't
        there."""

    def close(self) -> None: ...


@dataclass
class _Kept:
    row: Row
    put: int
    taken: int = NEVER


@dataclass
class MemorySpill:
    """In memory, for tests: the same as ``SqliteSpill``."""

    _rows: list[_Kept] = field(default_factory=list)
    _generation: int = 0

    def __len__(self) -> int:
        return len(self._there())

    def put(self, rows: Sequence[Row]) -> None:
        self._rows.extend(_Kept(row, self._generation + 1) for row in rows)

    def take(self, id_: str) -> Row | None:
        for kept in self._there():
            if kept.row.id == id_:
                kept.taken = self._generation + 1
                return kept.row
        return None

    def has(self, id_: str) -> bool:
        return any(kept.row.id == id_ for kept in self._there())

    def next_ms(self) -> int | None:
        return min((kept.row.due_ms for kept in self._there()), default=None)

    def take_due(self, now_ms: int, limit: int) -> list[Row]:
        due = sorted((k.row.due_ms, k.row.id) for k in self._there() if k.row.due_ms <= now_ms)
        return [row for _, id_ in due[:limit] if (row := self.take(id_)) is not None]

    def oldest(self) -> int | None:
        return min((kept.row.offset for kept in self._there()), default=None)

    def forget(self, user_id: str) -> None:
        for id_ in [kept.row.id for kept in self._there() if kept.row.user_id == user_id]:
            self.take(id_)

    def mark(self) -> int:
        if self._rows or self._generation:
            self._generation += 1
            self._rows = [kept for kept in self._rows if kept.taken > self._generation - KEPT]
        return self._generation

    def back(self, generation: int, rows: int) -> None:
        if generation:
            check_generation(generation, self._generation)
        self._rows = [kept for kept in self._rows if kept.put <= generation]
        for kept in self._rows:
            kept.taken = kept.taken if kept.taken <= generation else NEVER
        self._generation = generation
        check_rows(rows, len(self))

    def close(self) -> None: ...

    def _there(self) -> list[_Kept]:
        return [kept for kept in self._rows if kept.taken == NEVER]


def check_generation(generation: int, newest: int) -> None:
    if not newest - KEPT <= generation <= newest:
        raise SpillLost(
            f"generation {generation} was asked for, there are {max(0, newest - KEPT)} to {newest}"
        )


def check_rows(expected: int, found: int) -> None:
    if found != expected:
        raise SpillLost(f"{found} rows are there, the snapshot has {expected}")
