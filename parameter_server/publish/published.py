"""What replicas hold of a shard's rows: the published state, and which change of it goes out next.

A row that isn't held back is published as its rounded value, so the published state needs no second copy of
the rows: what was last sent is kept for held-back rows alone. Since values are sent and no increments, the
residual (true - published) of a row is its newest rounding error, however often it was published, or what
is held back of it; nothing adds up and nothing is lost.

A step may send ``budget`` bytes of rows. Rows go in the order of traffic × change, ties by key and table:
examples that used the row since it was last sent, times how far its rounded value is from what replicas hold.
What doesn't fit goes with later steps; a step that *settles* sends all. Tombstones are never held back.
A row whose rounded value is what replicas hold already isn't sent. Of a step that is *held*, as its record
may say while little changes, no row is sent: each goes once, with the next step that isn't. Whatever the
budget, and also where a step settles, no step sends more than ``MOST_BYTES``, so that a delta fits into one
record of any log.
"""

# N rows that a step touched, M rows that it removed, R rows held back, D dimension

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parameter_server.publish.rounding import (
    Packed,
    check_format,
    differ,
    digest_of_rows,
    distances,
    round_rows,
    row_bytes,
)
from parameter_server.publish.withheld_rows import WITHHELD_COLUMNS, WithheldRows
from parameter_server.table.routing import Keys, Rows
from parameter_server.table.table import Arrays, table_seed
from recsys.config.system_config import TableConfig
from recsys.events.records import TableRows

KEY_BYTES: Final = 8
MOST_BYTES: Final = 8 << 20  # of rows and tombstones in a step: half of Kafka's largest record
Mask = NDArray[np.bool_]
RowsOf = Callable[[str, Keys], Rows]


class Removed(NamedTuple):
    """Rows that left in a step: keys (M,), what they were before it (M, D), whether they were there (M,)."""

    keys: Keys
    before: Rows
    there: Mask


class Change(NamedTuple):
    """What a step did to a table: keys (N,) of the rows that it changed, before and after (N, D), whether
    they were there before (N,), the examples behind each (N,); and what left. No key is in both."""

    keys: Keys
    before: Rows
    there: Mask
    after: Rows
    counts: NDArray[np.int32]
    removed: Removed


@dataclass(frozen=True)
class _Moved:
    """Rows whose rounded value isn't what replicas hold: that (``last``, if ``had``), and what it is now."""

    keys: Keys
    last: Rows
    had: Mask
    traffic: NDArray[np.int64]
    packed: Packed
    now: Rows

    def take(self, chosen: Mask) -> "_Moved":
        if chosen.all():
            return self
        return _Moved(
            self.keys[chosen], self.last[chosen], self.had[chosen], self.traffic[chosen],
            self.packed[chosen], self.now[chosen],
        )  # fmt: skip


class PublishedRows:
    """The published state of one shard's tables. Values in, values out; it never sees the tables."""

    def __init__(
        self, tables: Sequence[TableConfig], seed: int, format: str = "fp32", budget: int = 0
    ) -> None:
        """``budget``: bytes of keys and rows of a step, 0 for all that ``MOST_BYTES`` lets through; one row
        goes whatever it is."""
        self.format, self._budget = check_format(format), budget
        self._tables = {table.name: table for table in tables}
        self._seeds = {name: table_seed(seed, name) for name in self._tables}
        self._held = {
            name: WithheldRows(table.dim, format == "fp16") for name, table in self._tables.items()
        }
        self._digest = 0

    @property
    def digest(self) -> int:
        """Of all published rows, modulo 2⁶⁴: those of shards add up, whatever their number."""
        return self._digest

    @property
    def withheld(self) -> dict[str, int]:
        """How many rows are held back, by table."""
        return {name: len(held) for name, held in self._held.items()}

    def publish(
        self,
        changes: Mapping[str, Change],
        rows_of: RowsOf,
        settle: bool = False,
        hold: bool = False,
    ) -> list[TableRows]:
        """What a step sends of each table: of one that is to ``hold``, tombstones alone. ``rows_of`` looks up
        rows as they are after the step."""
        moved = {name: self._moved(name, change) for name, change in changes.items()}
        tombstones = KEY_BYTES * sum(len(change.removed.keys) for change in changes.values())
        most = max(0, MOST_BYTES - tombstones)
        if self._budget and not settle:
            most = min(most, self._budget)
        if hold:
            chosen = self._all(moved, False)
        else:
            chosen = self._all(moved) if self._fits(moved, most) else self._choose(moved, most)
        out = []
        for name, change in changes.items():
            removed = change.removed.keys
            rows = self._send(name, moved[name], *chosen[name], rows_of)
            if len(rows.keys) or len(removed):
                dim = self._tables[name].dim
                keys, values = rows.keys.tobytes(), rows.packed.tobytes()
                out.append(
                    TableRows(
                        table=name, dim=dim, keys=keys, values=values, removed=removed.tobytes()
                    )
                )
        return out

    def _moved(self, name: str, change: Change) -> _Moved:
        """Takes out of the held-back rows whatever the step touched, and says what replicas must learn."""
        self._remove(name, change.removed)
        last, had = round_rows(change.before, self.format).rows, change.there
        traffic = change.counts.astype(np.int64)
        held = self._held[name]
        if len(held):
            last, had = last.copy(), had.copy()
            at, old = held.pop(change.keys)
            last[at], had[at] = old.last, old.had
            traffic[at] += old.traffic
        packed, now = round_rows(change.after, self.format)
        moved = _Moved(change.keys, last, had, traffic, packed, now)
        return moved.take(differ(now, last) | ~had)

    def _remove(self, name: str, removed: Removed) -> None:
        last, had = round_rows(removed.before, self.format).rows, removed.there
        if len(self._held[name]) and len(removed.keys):
            last, had = last.copy(), had.copy()
            at, old = self._held[name].pop(removed.keys)
            last[at], had[at] = old.last, old.had
        self._count(name, removed.keys, last, had, -1)

    def _count(self, name: str, keys: Keys, rows: Rows, chosen: Mask, sign: int) -> None:
        its = digest_of_rows(self._seeds[name], keys, rows, chosen)
        self._digest = (self._digest + sign * its) % 2**64

    def _cost(self, name: str) -> int:
        return KEY_BYTES + row_bytes(self._tables[name].dim, self.format)

    def _fits(self, moved: Mapping[str, _Moved], most: int) -> bool:
        rows = {name: len(its.keys) + len(self._held[name]) for name, its in moved.items()}
        return most >= sum(count * self._cost(name) for name, count in rows.items())

    def _all(self, moved: Mapping[str, _Moved], go: bool = True) -> dict[str, tuple[Mask, Mask]]:
        return {
            name: (np.full(len(its.keys), go), np.full(len(self._held[name]), go))
            for name, its in moved.items()
        }

    def _choose(self, moved: Mapping[str, _Moved], budget: int) -> dict[str, tuple[Mask, Mask]]:
        """Which of the moved and of the held-back rows of each table go: the first that fit ``budget``."""
        keys, weights, costs, tables = [], [], [], []
        for number, (name, its) in enumerate(moved.items()):
            held = self._held[name]
            keys += [its.keys, held.keys]
            weights += [its.traffic * distances(its.now, its.last), held.weights]
            rows = len(its.keys) + len(held)
            costs.append(np.full(rows, self._cost(name), np.int64))
            tables.append(np.full(rows, number))
        weight, cost = np.concatenate(weights), np.concatenate(costs)
        # No more rows than this fit, so only they and their equals need be put in order.
        most = budget // min(map(self._cost, moved)) + 1
        first = np.arange(len(weight))
        if most < len(weight):
            first = np.flatnonzero(weight >= np.partition(weight, -most)[-most])
        columns = np.concatenate(tables), np.concatenate(keys), -weight
        order = first[np.lexsort(tuple(column[first] for column in columns))]
        count = int(np.searchsorted(np.cumsum(cost[order]), budget, "right"))
        goes = np.zeros(len(weight), np.bool_)
        goes[order[: max(1, count)]] = True
        cuts = np.split(goes, np.cumsum([len(part) for part in keys])[:-1])
        return {name: (cuts[2 * n], cuts[2 * n + 1]) for n, name in enumerate(moved)}

    def _send(self, name: str, moved: _Moved, goes: Mask, tail: Mask, rows_of: RowsOf) -> "_Sent":
        """Sends some rows, the step's own first, then those held back before, by key; holds back others."""
        held, sent = self._held[name], moved.take(goes)
        rows = _Sent(sent.keys, sent.packed)
        self._count(name, sent.keys, sent.last, sent.had, -1)
        self._count(name, sent.keys, sent.now, np.ones(len(sent.keys), np.bool_), 1)
        if tail.any():
            keys = np.sort(held.keys[tail])
            _, old = held.pop(keys)
            packed, now = round_rows(rows_of(name, keys), self.format)
            self._count(name, keys, old.last.astype(np.float32), old.had, -1)
            self._count(name, keys, now, np.ones(len(keys), np.bool_), 1)
            rows = _Sent(np.concatenate([rows.keys, keys]), np.concatenate([rows.packed, packed]))
        if not goes.all():
            waits = moved.take(~goes)
            change = distances(waits.now, waits.last)
            held.put(waits.keys, waits.last, waits.had, waits.traffic, change)
        return rows

    def export(self) -> Arrays:
        """What is held back, for a snapshot ("held/NAME/COLUMN"), by key; the rest follows from the rows."""
        return {
            f"held/{name}/{column}": array
            for name, held in self._held.items()
            for column, array in held.export().items()
        }

    def load(self, name: str, keys: Keys, values: Rows, held: Arrays) -> None:
        """Goes on from rows of a snapshot that this shard owns, and what was held back of them (nothing, in a
        snapshot without these columns); more of the same table may follow, where several shards wrote it."""
        if held:
            self._held[name].put(*(held[column] for column in WITHHELD_COLUMNS))
        its, rows = published_rows(keys, values, held, self.format)
        self._count(name, its, rows, np.ones(len(its), np.bool_), 1)


class _Sent(NamedTuple):
    keys: Keys
    packed: Packed


def published_rows(
    keys: Keys, values: Rows, held: Mapping[str, NDArray[Any]], format: str
) -> tuple[Keys, Rows]:
    """What replicas hold of true rows (R, D), given what is held back of them (if anything is): keys, and
    rounded rows."""
    rows = round_rows(values, format).rows
    if not held or not len(held["keys"]):
        return keys, rows
    order = np.argsort(keys)
    at = order[np.searchsorted(keys, held["keys"], sorter=order)]
    rows = rows.copy()
    rows[at] = held["last"]
    known = np.ones(len(keys), np.bool_)
    known[at] = held["had"]
    return keys[known], rows[known]
