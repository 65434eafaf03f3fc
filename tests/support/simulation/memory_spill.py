"""A joiner's spill in memory, with the contract of ``Spill``."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from training.joining.spill import KEPT, NEVER, Row, Spill, check_generation, check_rows


@dataclass
class _Stored:
    row: Row
    put: int
    taken: int = NEVER


@dataclass
class MemorySpill(Spill):
    _rows: list[_Stored] = field(default_factory=list)
    _generation: int = 0

    def __len__(self) -> int:
        return len(self._present())

    def put(self, rows: Sequence[Row]) -> None:
        self._rows.extend(_Stored(row, self._generation + 1) for row in rows)

    def take(self, id_: str) -> Row | None:
        for stored in self._present():
            if stored.row.id == id_:
                stored.taken = self._generation + 1
                return stored.row
        return None

    def has(self, id_: str) -> bool:
        return any(stored.row.id == id_ for stored in self._present())

    def next_ms(self) -> int | None:
        return min((stored.row.due_ms for stored in self._present()), default=None)

    def take_due(self, now_ms: int, limit: int) -> list[Row]:
        due = sorted((s.row.due_ms, s.row.id) for s in self._present() if s.row.due_ms <= now_ms)
        return [row for _, id_ in due[:limit] if (row := self.take(id_)) is not None]

    def oldest(self) -> int | None:
        return min((stored.row.offset for stored in self._present()), default=None)

    def forget(self, user_id: str) -> None:
        for id_ in [stored.row.id for stored in self._present() if stored.row.user_id == user_id]:
            self.take(id_)

    def mark(self) -> int:
        if self._rows or self._generation:
            self._generation += 1
            self._rows = [stored for stored in self._rows if stored.taken > self._generation - KEPT]
        return self._generation

    def rewind(self, generation: int, rows: int) -> None:
        if generation:
            check_generation(generation, self._generation)
        self._rows = [stored for stored in self._rows if stored.put <= generation]
        for stored in self._rows:
            stored.taken = stored.taken if stored.taken <= generation else NEVER
        self._generation = generation
        check_rows(rows, len(self))

    def close(self) -> None: ...

    def _present(self) -> list[_Stored]:
        return [stored for stored in self._rows if stored.taken == NEVER]
