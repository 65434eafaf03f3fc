"""Pending impressions of a joiner with their timers: in memory up to a cap, beyond it in a spill.

When memory is full, closed impressions are spilled first, then open ones, each oldest first, until half is
free. Timers expire in the order of (due, id) wherever they are.
"""

import heapq
from collections.abc import Iterator
from typing import Final

import msgspec
from msgspec.structs import replace

from recsys.events.event_types import Impression, decode, encode
from recsys.log.compression import compressed
from training.joining.impression_state import ImpressionState, OpenImpression, StateHead, size_of
from training.joining.spill import Row, Spill

_AROUND: Final = 300  # bytes around a packed state: its id, its dictionary entry, its timer
_AT_ONCE: Final = 1_000  # due rows taken from the spill
_ALL: Final = (1 << 63, "")  # after every timer


class PendingState(msgspec.Struct, array_like=True):
    open: dict[str, ImpressionState]
    closed: dict[str, bytes]
    timers: list[tuple[int, str]]
    generation: int  # of the spill
    spilled: int  # number of its rows


class PendingImpressions:
    """Impressions by request id. ``keep``: they can't be read again, so they are stored whole, compressed.
    ``cap`` of the memory in bytes. Call ``load`` before looking an id up in ``open`` and ``closed``."""

    def __init__(self, keep: bool, spill: Spill | None, cap: int) -> None:
        self._keep, self._spill, self._cap = keep, spill, cap
        self.open: dict[str, OpenImpression] = {}
        self.closed: dict[str, bytes] = {}  # packed ImpressionState, until the horizon
        self.timers: list[tuple[int, str]] = []
        self.bytes = 0  # approximate use of memory
        self.next_ms: int | None = None  # when the first row of the spill is due
        # Ids in memory by user, from a deletion until it outgrows what is pending or is marked: so a thousand
        # deletions are one search.
        self._ids_of_user: dict[str, list[str]] | None = None
        self._indexed = 0

    def __len__(self) -> int:
        return len(self.open) + len(self.closed) + self.spilled

    @property
    def spilled(self) -> int:
        """Number of impressions in the spill."""
        return len(self._spill) if self._spill is not None else 0

    def has(self, id_: str) -> bool:
        if id_ in self.open or id_ in self.closed:
            return True
        return self._spill is not None and self._spill.has(id_)

    def load(self, id_: str) -> None:
        """Moves an impression from the spill into memory, if it is there."""
        if self._spill is None or id_ in self.open or id_ in self.closed:
            return
        row = self._spill.take(id_)
        if row is not None:
            self._into_memory(row)
            self.next_ms = self._spill.next_ms()

    def left_offset(self, id_: str) -> int | None:
        """Offset of an impression that left memory, whose state is in memory now; None for any other id."""
        self.load(id_)
        if packed := self.closed.get(id_):
            return _head.decode(packed).offset
        opened = self.open.get(id_)
        return opened.state.offset if opened is not None and opened.impression is None else None

    def left_offsets(self, first: int, most: int) -> list[int]:
        """Offsets from ``first`` on of open impressions that left memory (in a restart), the lowest ones."""
        left = (o.state.offset for o in self.open.values() if o.impression is None)
        return heapq.nsmallest(most, (offset for offset in left if offset >= first))

    def add(self, id_: str, opened: OpenImpression, due_ms: int) -> None:
        self.open[id_] = opened
        self._index(opened.state.user_id, id_)
        heapq.heappush(self.timers, (due_ms, id_))
        self.bytes += opened.size
        if self._spill is not None and self.bytes > self._cap:
            self._spill_oldest(self._spill)

    def close(self, id_: str, due_ms: int) -> None:
        """Packs an impression whose window is over; its horizon ends at ``due_ms``."""
        opened = self.open.pop(id_)
        state = self._stored_state(opened)
        state.closed = True
        packed = self.closed[id_] = _encoder.encode(state)
        self.bytes += len(packed) + _AROUND - opened.size
        heapq.heappush(self.timers, (due_ms, id_))

    def update(self, id_: str, state: ImpressionState) -> None:
        """Replaces the state of a closed impression."""
        packed = _encoder.encode(state)
        self.bytes += len(packed) - len(self.closed[id_])
        self.closed[id_] = packed

    def drop(self, id_: str) -> None:
        """Removes a closed impression whose horizon is over."""
        self.bytes -= len(self.closed.pop(id_)) + _AROUND

    def forget(self, user_id: str) -> None:
        """Removes a user's impressions; their timers in memory expire without effect."""
        # An id may have been dropped since it was indexed, or belong to another user now.
        for id_ in self._user_index().pop(user_id, ()):
            if id_ in self.open and self.open[id_].state.user_id == user_id:
                self.bytes -= self.open.pop(id_).size
            elif id_ in self.closed and _head.decode(self.closed[id_]).user_id == user_id:
                self.drop(id_)
        if self._spill is not None:
            self._spill.forget(user_id)
            self.next_ms = self._spill.next_ms()

    def requests_of(self, user_id: str) -> list[str]:
        """Ids of a user's impressions, and perhaps of some that were dropped meanwhile."""
        spilled = self._spill.of_user(user_id) if self._spill is not None else []
        return list(dict.fromkeys([*self._user_index().get(user_id, ()), *spilled]))

    def _user_index(self) -> dict[str, list[str]]:
        """The index of users, built where there is none."""
        index = self._ids_of_user
        if index is None:
            index, self._indexed = {}, 0
            self._ids_of_user = index
            for id_, opened in self.open.items():
                self._index(opened.state.user_id, id_)
            for id_, packed in self.closed.items():
                self._index(_head.decode(packed).user_id, id_)
        return index

    def _index(self, user_id: str, id_: str) -> None:
        if self._ids_of_user is None:
            return
        self._ids_of_user.setdefault(user_id, []).append(id_)
        self._indexed += 1
        if self._indexed > 2 * (len(self.open) + len(self.closed)) + _AT_ONCE:
            self._ids_of_user = None

    def set_impression(self, opened: OpenImpression, impression: Impression) -> None:
        """Attaches the impression that was read again to an open entry."""
        size = size_of(impression)
        self.bytes += size - opened.size
        opened.impression, opened.size = impression, size

    def due(self, now_ms: int) -> Iterator[tuple[int, str]]:
        """Yields expired timers by (due, id), also those set meanwhile, with impressions in memory."""
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
        """The lowest offset of all pending impressions."""
        offsets = [opened.state.offset for opened in self.open.values()]
        offsets += [_head.decode(packed).offset for packed in self.closed.values()]
        spilled = self._spill.oldest() if self._spill is not None else None
        return min(offsets if spilled is None else [*offsets, spilled], default=None)

    def mark(self) -> PendingState:
        """Returns the state for a snapshot; the content of the spill stays there and is marked."""
        self._ids_of_user = None
        states = {id_: self._stored_state(opened) for id_, opened in self.open.items()}
        generation = self._spill.mark() if self._spill is not None else 0
        return PendingState(states, self.closed, self.timers, generation, self.spilled)

    def restore(self, state: PendingState) -> None:
        """Returns to a state; raises SpillLost if its rows in the spill are missing."""
        self._ids_of_user = None
        if self._spill is not None:
            self._spill.rewind(state.generation, state.spilled)
            self.next_ms = self._spill.next_ms()
        self.open = {id_: OpenImpression(s, None, _AROUND) for id_, s in state.open.items()}
        self.closed, self.timers = state.closed, state.timers
        packed = sum(map(len, self.closed.values()))
        self.bytes = packed + _AROUND * (len(self.open) + len(self.closed))

    def _stored_state(self, opened: OpenImpression) -> ImpressionState:
        """State of an open impression from which the impression can be recovered."""
        if self._keep and opened.impression is not None:
            return replace(opened.state, encoded=compressed(encode(opened.impression)))
        return opened.state

    def _spill_oldest(self, spill: Spill) -> None:
        due = {id_: due_ms for due_ms, id_ in self.timers}
        rows = list[Row]()
        for id_, packed in list(self.closed.items()):
            if self.bytes <= self._cap // 2:
                break
            self.drop(id_)
            rows.append(_row(id_, due[id_], decode_state(packed), packed))
        for id_, opened in list(self.open.items()):
            if self.bytes <= self._cap // 2:
                break
            del self.open[id_]
            self.bytes -= opened.size
            packed = _encoder.encode(self._stored_state(opened))
            rows.append(_row(id_, due[id_], opened.state, packed))
        spill.put(rows)
        spilled = {row.id for row in rows}
        self.timers[:] = [timer for timer in self.timers if timer[1] not in spilled]
        heapq.heapify(self.timers)
        self.next_ms = spill.next_ms()

    def _into_memory(self, row: Row) -> None:
        state = decode_state(row.value)
        size = len(row.value) + _AROUND
        if state.closed:
            self.closed[row.id] = row.value
        else:
            self.open[row.id] = OpenImpression(state, None, size)
        self._index(state.user_id, row.id)
        self.bytes += size
        heapq.heappush(self.timers, (row.due_ms, row.id))


def stored_impression(state: ImpressionState) -> Impression | None:
    """The impression that is stored with its state; None if it must be read again."""
    if not state.encoded:
        return None
    impression = decode(state.encoded)
    assert isinstance(impression, Impression)
    return impression


def _row(id_: str, due_ms: int, state: ImpressionState, packed: bytes) -> Row:
    return Row(id_, due_ms, state.offset, state.user_id, packed)


_encoder: Final = msgspec.msgpack.Encoder()
decode_state: Final = msgspec.msgpack.Decoder(ImpressionState).decode
_head: Final = msgspec.msgpack.Decoder(StateHead)
