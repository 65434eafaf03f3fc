"""Published state of a shard (the rows that replicas hold) and the choice of rows to send next.

A row that isn't withheld is published as its rounded value, so only withheld rows keep a copy of the last
sent value. Deltas carry values, not differences: the residual (true - published) of a row is its newest
rounding error or its withheld change, and never accumulates.

A step may send ``budget`` bytes of rows, in the order of traffic × change, ties by key and table: examples
that used the row since it was last sent, times the distance of its rounded value from the replicas' one.
Other rows go with later steps; a *settling* step sends all. Tombstones are never withheld, and rows whose
rounded value is unchanged aren't sent. Even a settling step sends at most ``MAX_BYTES``, so a delta fits into
one record of any log.
"""

# N rows that a step touched, M rows that it removed, R withheld rows, D dimension

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
from parameter_server.table.table import table_seed
from recsys.arrays.id_map import Arrays
from recsys.config.system_config import TableConfig
from recsys.events.records import TableRows

KEY_BYTES: Final = 8
MAX_BYTES: Final = 8 << 20  # of rows and tombstones in a step: half of Kafka's largest record
Mask = NDArray[np.bool_]
RowsOf = Callable[[str, Keys], Rows]


class Removed(NamedTuple):
    """Rows removed by a step: keys (M,), values before it (M, D), whether they existed (M,)."""

    keys: Keys
    before: Rows
    existed: Mask


class TableChange(NamedTuple):
    """Effect of a step on a table: keys (N,) of changed rows, values before and after (N, D), whether they
    existed before (N,), number of examples (N,); and removed rows. No key is in both."""

    keys: Keys
    before: Rows
    existed: Mask
    after: Rows
    counts: NDArray[np.int32]
    removed: Removed


@dataclass(frozen=True)
class _Moved:
    """Rows whose rounded value ``now`` differs from the last sent one (``last``, if ``had``)."""

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
    """Published state of one shard's tables; it never sees the tables."""

    def __init__(
        self, tables: Sequence[TableConfig], seed: int, format: str = "fp32", budget: int = 0
    ) -> None:
        """``budget``: bytes of keys and rows of a step, at least one row; 0: up to ``MAX_BYTES``."""
        self.format, self._budget = check_format(format), budget
        self._tables = {table.name: table for table in tables}
        self._seeds = {name: table_seed(seed, name) for name in self._tables}
        self._withheld = {
            name: WithheldRows(table.dim, format == "fp16") for name, table in self._tables.items()
        }
        self.digest = 0  # of all published rows, modulo 2⁶⁴: the sum over any number of shards

    @property
    def withheld(self) -> dict[str, int]:
        """Number of withheld rows by table."""
        return {name: len(rows) for name, rows in self._withheld.items()}

    def publish(
        self, changes: Mapping[str, TableChange], rows_of: RowsOf, settle: bool = False
    ) -> list[TableRows]:
        """Rows and tombstones that a step sends of each table. ``rows_of`` looks up rows after the step."""
        moved = {name: self._moved(name, change) for name, change in changes.items()}
        tombstones = KEY_BYTES * sum(len(change.removed.keys) for change in changes.values())
        most = max(0, MAX_BYTES - tombstones)
        if self._budget and not settle:
            most = min(most, self._budget)
        chosen = self._all(moved) if self._fits(moved, most) else self._choose(moved, most)
        out = []
        for name, change in changes.items():
            removed, dim = change.removed.keys.tobytes(), self._tables[name].dim
            sent = self._send(name, moved[name], *chosen[name], rows_of)
            keys, values = (array.tobytes() for array in sent)
            rows = TableRows(table=name, dim=dim, keys=keys, values=values, removed=removed)
            out += [rows] if keys or removed else []
        return out

    def _moved(self, name: str, change: TableChange) -> _Moved:
        """Releases withheld rows that the step touched; returns the rows that replicas must learn."""
        removed, no_traffic = change.removed, np.zeros(len(change.removed.keys), np.int64)
        last, had = self._last_sent(name, removed.keys, removed.before, removed.existed, no_traffic)
        self._count(name, removed.keys, last, had, -1)
        traffic = change.counts.astype(np.int64)
        last, had = self._last_sent(name, change.keys, change.before, change.existed, traffic)
        packed, now = round_rows(change.after, self.format)
        moved = _Moved(change.keys, last, had, traffic, packed, now)
        return moved.take(differ(now, last) | ~had)

    def _last_sent(
        self, name: str, keys: Keys, before: Rows, existed: Mask, traffic: NDArray[np.int64]
    ) -> tuple[Rows, Mask]:
        """Last sent rows (N, D) and whether there are any (N,); adds withheld traffic to ``traffic``."""
        last, had = round_rows(before, self.format).rows, existed
        if len(self._withheld[name]) and len(keys):
            last, had = last.copy(), had.copy()
            at, old = self._withheld[name].pop(keys)
            last[at], had[at] = old.last, old.had
            traffic[at] += old.traffic
        return last, had

    def _count(self, name: str, keys: Keys, rows: Rows, chosen: Mask, sign: int) -> None:
        digest = digest_of_rows(self._seeds[name], keys, rows, chosen)
        self.digest = (self.digest + sign * digest) % 2**64

    def _cost(self, name: str) -> int:
        return KEY_BYTES + row_bytes(self._tables[name].dim, self.format)

    def _fits(self, moved: Mapping[str, _Moved], most: int) -> bool:
        rows = {name: len(table.keys) + len(self._withheld[name]) for name, table in moved.items()}
        return most >= sum(count * self._cost(name) for name, count in rows.items())

    def _all(self, moved: Mapping[str, _Moved]) -> dict[str, tuple[Mask, Mask]]:
        return {
            name: (np.ones(len(table.keys), np.bool_), np.ones(len(self._withheld[name]), np.bool_))
            for name, table in moved.items()
        }

    def _choose(self, moved: Mapping[str, _Moved], budget: int) -> dict[str, tuple[Mask, Mask]]:
        """Masks of the moved and the withheld rows to send, by table: the first that fit ``budget``."""
        keys, weights, costs, tables = [], [], [], []
        for number, (name, table) in enumerate(moved.items()):
            withheld = self._withheld[name]
            keys += [table.keys, withheld.keys]
            weights += [table.traffic * distances(table.now, table.last), withheld.weights]
            rows = len(table.keys) + len(withheld)
            costs.append(np.full(rows, self._cost(name), np.int64))
            tables.append(np.full(rows, number))
        weight, cost = np.concatenate(weights), np.concatenate(costs)
        # No more rows than this fit, so only they and their ties are sorted.
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

    def _send(self, name: str, moved: _Moved, goes: Mask, tail: Mask, rows_of: RowsOf) -> tuple[Keys, Packed]:
        """Keys and values to send: the step's own first, then withheld ones by key. Withholds the others."""
        withheld, sent = self._withheld[name], moved.take(goes)
        rows = sent.keys, sent.packed
        self._count(name, sent.keys, sent.last, sent.had, -1)
        self._count(name, sent.keys, sent.now, np.ones(len(sent.keys), np.bool_), 1)
        if tail.any():
            keys = np.sort(withheld.keys[tail])
            _, old = withheld.pop(keys)
            packed, now = round_rows(rows_of(name, keys), self.format)
            self._count(name, keys, old.last.astype(np.float32), old.had, -1)
            self._count(name, keys, now, np.ones(len(keys), np.bool_), 1)
            rows = np.concatenate([rows[0], keys]), np.concatenate([rows[1], packed])
        if not goes.all():
            rest = moved.take(~goes)
            change = distances(rest.now, rest.last)
            columns = (rest.keys, rest.last, rest.had, rest.traffic, change)
            withheld.put(dict(zip(WITHHELD_COLUMNS, columns, strict=True)))
        return rows

    def export(self) -> Arrays:
        """Withheld rows for a snapshot ("held/NAME/COLUMN"), by key; the rest follows from the rows."""
        return {
            f"held/{name}/{column}": array
            for name, withheld in self._withheld.items()
            for column, array in withheld.export().items()
        }

    def load(self, name: str, keys: Keys, values: Rows, withheld: Arrays) -> None:
        """Adds a snapshot's rows that this shard owns, and their withheld columns (empty in old snapshots).
        May be called once for each shard that wrote the snapshot."""
        if withheld:
            self._withheld[name].put(withheld)
        keys, rows = published_rows(keys, values, withheld, self.format)
        self._count(name, keys, rows, np.ones(len(keys), np.bool_), 1)


def published_rows(
    keys: Keys, values: Rows, withheld: Mapping[str, NDArray[Any]], format: str
) -> tuple[Keys, Rows]:
    """Keys and rounded rows that replicas hold of true rows (R, D), given the withheld columns."""
    rows = round_rows(values, format).rows
    if not withheld or not len(withheld["keys"]):
        return keys, rows
    order = np.argsort(keys)
    at = order[np.searchsorted(keys, withheld["keys"], sorter=order)]
    rows = rows.copy()
    rows[at] = withheld["last"]
    sent = np.ones(len(keys), np.bool_)
    sent[at] = withheld["had"]
    return keys[sent], rows[sent]
