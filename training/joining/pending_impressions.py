"""The impressions that a joiner holds, with their timers: in memory up to a cap, beyond it in a spill.

While its window is open an impression is held whole; after it, packed. Where memory is full the closed ones
go to the spill first, each kind the oldest first, until half is free. Where something is held changes nothing
of what comes out: timers run out in the order of (due, id), wherever they are.
"""

import heapq
from collections.abc import Iterator
from typing import Final

import msgspec
from msgspec.structs import replace

from recsys.events.event_types import Impression, decode, encode
from training.joining.impression_state import Held, StateOffset, Open, size_of
from training.joining.spill import Row, Spill

_AROUND: Final = 300  # bytes around a packed Held: its id, its place in a dictionary, its timer
_AT_ONCE: Final = 1_000  # rows of the spill that are due
_ALL: Final = (1 << 63, "")  # after every timer


class PendingState(msgspec.Struct, array_like=True):
    open: dict[str, Held]
    closed: dict[str, bytes]
    timers: list[tuple[int, str]]
    generation: int  # of the spill
    spilled: int  # rows there


class PendingImpressions:
    """Impressions by request id. ``keep``: they can't be read again, and are kept whole for ever.

    Without a ``spill`` everything stays in memory; ``cap`` is in bytes. ``reach`` an id before looking for it
    in ``open`` and ``closed``.
    """

    def __init__(self, keep: bool, spill: Spill | None, cap: int) -> None:
        self._keep, self._spill, self._cap = keep, spill, cap
        self.open: dict[str, Open] = {}
        self.closed: dict[str, bytes] = {}  # packed Held, until the horizon
        self.timers: list[tuple[int, str]] = []
        self.bytes = 0  # about so many in memory
        self.next_ms: int | None = None  # when the first row of the spill is due
        self.put_away = 0  # impressions, since the start

    def __len__(self) -> int:
        return len(self.open) + len(self.closed) + self.spilled

    @property
    def spilled(self) -> int:
        """Impressions in the spill."""
        return len(self._spill) if self._spill is not None else 0

    def has(self, id_: str) -> bool:
        if id_ in self.open or id_ in self.closed:
            return True
        return self._spill is not None and self._spill.has(id_)

    def reach(self, id_: str) -> None:
        """Has an impression in memory, where it is in the spill."""
        if self._spill is None or id_ in self.open or id_ in self.closed:
            return
        row = self._spill.take(id_)
        if row is not None:
            self._into_memory(row)
            self.next_ms = self._spill.next_ms()

    def add(self, id_: str, opened: Open, due_ms: int) -> None:
        self.open[id_] = opened
        heapq.heappush(self.timers, (due_ms, id_))
        self.bytes += opened.size
        if self._spill is not None and self.bytes > self._cap:
            self._put_away(self._spill)

    def close(self, id_: str, due_ms: int) -> None:
        """The window is over; ``due_ms`` is when the horizon is."""
        opened = self.open.pop(id_)
        held = self._to_keep(opened)
        held.closed = True
        packed = self.closed[id_] = _encoder.encode(held)
        self.bytes += len(packed) + _AROUND - opened.size
        heapq.heappush(self.timers, (due_ms, id_))

    def change(self, id_: str, held: Held) -> None:
        """Something was done with a closed one."""
        packed = _encoder.encode(held)
        self.bytes += len(packed) - len(self.closed[id_])
        self.closed[id_] = packed

    def drop(self, id_: str) -> None:
        """The horizon of a closed one is over."""
        self.bytes -= len(self.closed.pop(id_)) + _AROUND

    def forget(self, user_id: str) -> None:
        """Lets go of a user's impressions; their timers in memory run out by themselves."""
        for id_ in [id_ for id_, opened in self.open.items() if opened.held.user_id == user_id]:
            self.bytes -= self.open.pop(id_).size
        packed = self.closed.items()
        for id_ in [id_ for id_, its in packed if _held.decode(its).user_id == user_id]:
            self.drop(id_)
        if self._spill is not None:
            self._spill.forget(user_id)
            self.next_ms = self._spill.next_ms()

    def impression_of(self, held: Held) -> Impression | None:
        """The impression that is kept with it; None where it must be read again."""
        if not held.kept:
            return None
        impression = decode(held.kept)
        assert isinstance(impression, Impression)
        return impression

    def whole_again(self, opened: Open, impression: Impression) -> None:
        """An open one was read again."""
        size = size_of(impression)
        self.bytes += size - opened.size
        opened.impression, opened.size = impression, size

    def due(self, now_ms: int) -> Iterator[tuple[int, str]]:
        """The timers that have run out, in the order of (due, id), also those set meanwhile. Each one's
        impression is in memory."""
        timers, spill = self.timers, self._spill
        while True:
            until = _ALL
            if spill is not None and self.next_ms is not None and self.next_ms <= now_ms:
                rows = spill.take_due(now_ms, _AT_ONCE)
                for row in rows:
                    self._into_memory(row)
                if len(rows) == _AT_ONCE:
                    until = (rows[-1].due_ms, rows[-1].id)
                self.next_ms = spill.next_ms()
            while timers and timers[0][0] <= now_ms and timers[0] <= until:
                yield heapq.heappop(timers)
            if until is _ALL:
                return

    def oldest(self) -> int | None:
        """The lowest offset of all impressions held."""
        offsets = [opened.held.offset for opened in self.open.values()]
        offsets += [_held_at.decode(packed).offset for packed in self.closed.values()]
        spilled = self._spill.oldest() if self._spill is not None else None
        return min(offsets if spilled is None else [*offsets, spilled], default=None)

    def mark(self) -> PendingState:
        """The state. What is in the spill stays there, and is marked."""
        held = {id_: self._to_keep(opened) for id_, opened in self.open.items()}
        generation = self._spill.mark() if self._spill is not None else 0
        return PendingState(held, self.closed, self.timers, generation, self.spilled)

    def restore(self, state: PendingState) -> None:
        """Goes back to a state; raises SpillLost where its rows in the spill aren't there."""
        if self._spill is not None:
            self._spill.back(state.generation, state.spilled)
            self.next_ms = self._spill.next_ms()
        self.open = {id_: Open(held, None, _AROUND) for id_, held in state.open.items()}
        self.closed, self.timers = state.closed, state.timers
        packed = sum(map(len, self.closed.values()))
        self.bytes = packed + _AROUND * (len(self.open) + len(self.closed))

    def _to_keep(self, opened: Open) -> Held:
        """What is held of an open impression, from which it can be had again."""
        if self._keep and opened.impression is not None:
            return replace(opened.held, kept=encode(opened.impression))
        return opened.held

    def _put_away(self, spill: Spill) -> None:
        due = {id_: due_ms for due_ms, id_ in self.timers}
        rows = list[Row]()
        for id_, packed in list(self.closed.items()):
            if self.bytes <= self._cap // 2:
                break
            self.drop(id_)
            rows.append(_row(id_, due[id_], _held.decode(packed), packed))
        for id_, opened in list(self.open.items()):
            if self.bytes <= self._cap // 2:
                break
            del self.open[id_]
            self.bytes -= opened.size
            packed = _encoder.encode(self._to_keep(opened))
            rows.append(_row(id_, due[id_], opened.held, packed))
        spill.put(rows)
        self.put_away += len(rows)
        gone = {row.id for row in rows}
        self.timers[:] = [timer for timer in self.timers if timer[1] not in gone]
        heapq.heapify(self.timers)
        self.next_ms = spill.next_ms()

    def _into_memory(self, row: Row) -> None:
        held = _held.decode(row.value)
        size = len(row.value) + _AROUND
        if held.closed:
            self.closed[row.id] = row.value
        else:
            self.open[row.id] = Open(held, None, size)
        self.bytes += size
        heapq.heappush(self.timers, (row.due_ms, row.id))


def _row(id_: str, due_ms: int, held: Held, packed: bytes) -> Row:
    return Row(id_, due_ms, held.offset, held.user_id, packed)


_encoder = msgspec.msgpack.Encoder()
_held = msgspec.msgpack.Decoder(Held)
_held_at = msgspec.msgpack.Decoder(StateOffset)
