"""Embedding table of one shard: rows by id with optimizer state, admission, expiry and eviction.

Row-wise Adagrad (Duchi et al. 2011, one accumulator a row as FBGEMM's EXACT_ROWWISE_ADAGRAD): with g the
summed gradient of a row of dimension D,

    a ← a + (Σ_j g_j²) / D        w ← w - rate · g / (√a + ε)

A table knows no steps, no other shards and no wall clock: callers pass event time. A row's slot depends on
the order of insertion and removal; nothing published or digested does.
"""

# N keys in a batch, D dimension, R rows

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from parameter_server.table import kernels
from parameter_server.table.kernels import EPSILON
from parameter_server.table.routing import Keys, Rows, as_keys, as_rows
from parameter_server.table.sketch import BLOCK_BYTES, SKETCH_COLUMNS, Sketch, blocks_of, check_parts
from recsys.arrays.id_map import Arrays, IdMap
from recsys.arrays.key_index import EMPTY, LOAD
from recsys.config.system_config import TableConfig
from recsys.events.hashing import key_of

# Limit of one component, summed over a step: far beyond the gradients of a sound loss.
MAX_GRADIENT: Final = 1e3
ROW_COLUMNS: Final = ("keys", "values", "accumulator", "used_ms")
# Fraction of rows evicted at once at the budget: finding them is a scan of all.
EVICTED_FRACTION: Final = 1 / 32
# Most rows of a table to expire or evict at once: their tombstones (2 MiB) must fit into a delta.
MAX_REMOVED: Final = 1 << 18


def columns_in(arrays: Mapping[str, NDArray[Any]], prefix: str, names: Sequence[str]) -> Arrays:
    """The columns of one group of an export, without the prefix and without missing ones."""
    return {name: arrays[prefix + name] for name in names if prefix + name in arrays}


def table_seed(seed: int, table: str) -> int:
    """Seed of a table's initial values, so the same id differs between tables."""
    return key_of(f"table\x1f{seed}", table) & 0xFFFF_FFFF_FFFF_FFFF


def initial_rows(config: TableConfig, seed: int, keys: Keys) -> Rows:
    """Initial rows (N, D): uniform in ±initial, a pure function of (seed, table, key), equal to
    ``(2 · uniforms(table_seed, keys, D) - 1) · initial`` of ``recsys.events.hashing``."""
    keys = as_keys(keys)
    out = np.zeros((len(keys), config.dim), np.float32)
    if config.initial:
        targets = np.arange(len(keys))
        kernels.draw(np.uint64(table_seed(seed, config.name)), config.initial, keys, targets, out)
    return out


def rows_within(budget_mb: float, dim: int, beside: int = 0) -> int:
    """Rows that a budget in MiB holds beside ``beside`` bytes of the sketch; 0: no budget. Raises ValueError
    if it holds no row."""
    if not budget_mb:
        return 0
    row_bytes = 4 * dim + 4 + 8 + 8 + 16 / LOAD  # values, accumulator, used_ms, key; an index cell
    rows = int((budget_mb * 2**20 - beside) / row_bytes)
    if rows < 1:
        raise ValueError(
            f"budget_mb is {budget_mb}, expected more than {(beside + row_bytes) / 2**20:.3f}: the sketch "
            f"takes {beside} bytes and a row of dimension {dim} {row_bytes:.0f}; raise budget_mb or lower "
            "sketch_mb"
        )
    return rows


def check_table(config: TableConfig, parts: int) -> None:
    """Raises ValueError if ``Table`` would: the budget holds no row, or shards would share a sketch block."""
    beside = 0
    if config.admit_after > 1:
        blocks = blocks_of(config.sketch_mb)
        check_parts(blocks, parts)
        beside = blocks // parts * BLOCK_BYTES
    rows_within(config.budget_mb, config.dim, beside)


@dataclass(frozen=True)
class Applied:
    """Result of ``Table.apply``: ``keys`` of the changed rows, ``changed`` (mask over the given keys), and
    their ``slots``, valid until the table changes again."""

    keys: Keys
    changed: NDArray[np.bool_]
    slots: Keys
    inserted: int
    refused: int  # gradients not finite or beyond the bound: these rows stay unchanged
    waiting: int  # ids not seen often enough for a row, or without room for one
    evicted: Keys  # removed to make room, ascending
    evicted_rows: Rows  # their last values (E, D)


class Table:
    """One table's rows on one shard. Not thread-safe; the owner locks."""

    def __init__(
        self, config: TableConfig, seed: int, bound: float = MAX_GRADIENT, part: int = 0, parts: int = 1
    ) -> None:
        """Raises ValueError if the budget holds no row or ``parts`` doesn't divide the sketch."""
        self.config = config
        self._bound = bound
        self._seed = np.uint64(table_seed(seed, config.name))
        self._sketch: Sketch | None = None
        if config.admit_after > 1:
            blocks = blocks_of(config.sketch_mb)
            self._sketch = Sketch(int(self._seed), blocks, config.admit_after, part, parts)
        beside = self._sketch.nbytes if self._sketch else 0
        self._limit = rows_within(config.budget_mb, config.dim, beside)
        columns: Arrays = {
            "values": np.zeros((8, config.dim), np.float32),
            "accumulator": np.zeros(8, np.float32),
            "used_ms": np.zeros(8, np.int64),
        }
        self._ids = IdMap(limit=self._limit, columns=columns)

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def waiting(self) -> int:
        """Number of remembered sightings of ids without a row."""
        return self._sketch.sightings if self._sketch else 0

    @property
    def nbytes(self) -> int:
        """Memory of the table, bounded by ``budget_mb``."""
        return self._ids.nbytes + (self._sketch.nbytes if self._sketch else 0)

    def lookup(self, keys: Keys) -> Rows:
        """Rows of keys (N, D). An id without a row reads as its initial value; a lookup inserts nothing."""
        return self.lookup_known(keys)[0]

    def lookup_known(self, keys: Keys) -> tuple[Rows, NDArray[np.bool_]]:
        """As ``lookup``, and a mask of the keys that have a row (N,)."""
        keys = as_keys(keys)
        out = np.empty((len(keys), self.config.dim), np.float32)
        slots = self._ids.find(keys)
        values = self._ids.columns["values"]
        kernels.gather(values, slots, self._seed, self.config.initial, keys, out)
        return out, slots >= 0

    def apply(
        self, keys: Keys, gradients: Rows, counts: NDArray[np.int32], now_ms: int, rate: float = 1.0
    ) -> Applied:
        """Applies summed gradients (N, D) of distinct keys; ``counts``: number of examples of each. ``rate``:
        factor on the table's learning rate. At the budget, evicts the least recently used rows, none of this
        batch; if new ids still don't fit, the last ones of the batch get no row."""
        keys, gradients = as_keys(keys), as_rows(gradients)
        if gradients.shape != (len(keys), self.config.dim):
            raise ValueError(
                f"table {self.config.name}: gradients have shape {gradients.shape}, "
                f"expected {(len(keys), self.config.dim)}"
            )
        sound = np.empty(len(keys), np.bool_)
        refused = int(kernels.screen(gradients, self._bound, sound))
        slots = self._to_change(keys)
        new = np.flatnonzero((slots < 0) & sound)
        admitted = self._admit(keys, counts, new)
        evicted, evicted_rows = self._make_room(len(admitted), slots)
        if len(evicted):
            slots = self._ids.find(keys)
        if self._limit:
            admitted = admitted[: max(0, self._limit - len(self))]
        if len(admitted):
            slots[admitted] = self._insert(keys[admitted])
        if refused:
            slots[~sound] = EMPTY
        rate = rate * self.config.learning_rate
        columns = self._ids.columns
        kernels.adagrad(columns["values"], columns["accumulator"], columns["used_ms"], slots,
                        gradients, rate, EPSILON, now_ms)  # fmt: skip
        changed, waiting = slots >= 0, len(new) - len(admitted)
        if waiting or refused:
            keys, slots = keys[changed], slots[changed]
        return Applied(keys, changed, slots, len(admitted), refused, waiting, evicted, evicted_rows)

    def rows_at(self, slots: Keys) -> Rows:
        """Rows (N, D) at slots returned by ``apply``, without a search."""
        rows: Rows = self._ids.columns["values"].take(slots, axis=0)
        return rows

    def expire(self, now_ms: int, keys: Keys) -> Keys:
        """Removes rows of distinct keys unused for longer than the time-to-live; returns their keys,
        ascending."""
        slots = self._ids.find(as_keys(keys))
        used_ms = self._ids.columns["used_ms"]
        old = (slots >= 0) & (used_ms[slots] < now_ms - 1000 * self.config.ttl_s)
        return self.remove(keys[old])

    def stale(self, now_ms: int) -> Keys:
        """Keys of rows unused for longer than the time-to-live, ascending; of more than ``MAX_REMOVED``, the
        least recently used by (time, key)."""
        if not self.config.ttl_s:
            return np.empty(0, np.int64)
        used_ms = self._ids.columns["used_ms"][: len(self._ids)]
        slots = np.flatnonzero(used_ms < now_ms - 1000 * self.config.ttl_s)
        if len(slots) > MAX_REMOVED:
            slots = self._oldest(slots, MAX_REMOVED)
        return np.sort(self._ids.keys[slots])

    def _oldest(self, slots: Keys, count: int) -> Keys:
        """The ``count`` (< len(slots)) least recently used of the slots, by (time, key)."""
        used_ms = self._ids.columns["used_ms"]
        return slots[least_recently_used(self._ids.keys[slots], used_ms[slots], count)]

    def remove(self, keys: Keys) -> Keys:
        """Removes rows of distinct keys; returns the keys that had one, ascending. Their slots are zeroed, so
        nothing of them is left. The sketch keeps its counts, which name no id."""
        keys = as_keys(keys)
        slots = self._ids.find(keys)
        self._ids.remove(slots[slots >= 0])
        return np.sort(keys[slots >= 0])

    def export(self) -> Arrays:
        """Copies of all state, for a snapshot; rows in no particular order."""
        return self._ids.export() | (self._sketch.export() if self._sketch else {})

    def export_rows(self, keys: Keys) -> Arrays:
        """Copies of the rows of keys, all of which have one, in their order."""
        return self._ids.export(self._ids.find(keys))

    def export_since(self, time_ms: int) -> Arrays:
        """As ``export``, without rows last changed before ``time_ms``."""
        slots = np.flatnonzero(self._ids.columns["used_ms"][: len(self._ids)] >= time_ms)
        return self._ids.export(slots) | (self._sketch.export() if self._sketch else {})

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Adds the rows of an export, in place of those that the table has."""
        self._ids.put(arrays["keys"], arrays)
        if self._sketch and "sketch_at" in arrays:
            self._sketch.load(arrays)

    def digest(self) -> str:
        """SHA-256 of all state, independent of insertion order."""
        return digest_of_exports([self.export()])

    def _to_change(self, keys: Keys) -> Keys:
        """Slots (N,) of keys whose rows are about to change, EMPTY for missing ones."""
        return self._ids.find(keys)

    def _admit(self, keys: Keys, counts: NDArray[np.int32], new: Keys) -> Keys:
        """The ``new`` positions that get a row now; the others are counted as seen."""
        if self._sketch is None or not len(new):
            return new
        return new[self._sketch.see(keys[new], np.asarray(counts)[new])]

    def _make_room(self, rows: int, protected: Keys) -> tuple[Keys, Rows]:
        """Evicts least recently used rows, by (time, key), until ``rows`` more fit the budget: at least a
        batch, at most ``MAX_REMOVED``, none at the slots ``protected``. Returns keys, ascending, and
        values."""
        excess = len(self) + rows - self._limit
        if not self._limit or excess <= 0:
            return np.empty(0, np.int64), np.empty((0, self.config.dim), np.float32)
        may_leave = np.ones(len(self._ids), np.bool_)
        may_leave[protected[protected >= 0]] = False
        slots = np.flatnonzero(may_leave)
        leaving = min(len(slots), max(excess, int(self._limit * EVICTED_FRACTION)), MAX_REMOVED)
        if leaving < len(slots):
            slots = self._oldest(slots, leaving)
        slots = slots[np.argsort(self._ids.keys[slots])]
        evicted = self._ids.keys[slots], self._ids.columns["values"][slots]
        self._ids.remove(slots)
        if len(self) <= self._limit:
            self._ids.shrink()
        return evicted

    def _insert(self, keys: Keys) -> Keys:
        """Inserts rows at their initial values; returns the slots."""
        slots = self._ids.insert(keys)
        values = self._ids.columns["values"]
        kernels.draw(self._seed, self.config.initial, keys, slots, values)
        return slots


def least_recently_used(keys: Keys, used_ms: Keys, count: int) -> Keys:
    """Positions of the ``count`` (< len(keys)) least recently used rows, by (time, key)."""
    first = np.flatnonzero(used_ms <= np.partition(used_ms, count)[count])
    return first[np.lexsort((keys[first], used_ms[first]))[:count]]


def digest_of_exports(exports: Sequence[Mapping[str, NDArray[Any]]]) -> str:
    """SHA-256 of a table exported by several shards, independent of how it is split."""
    sha = hashlib.sha256()
    ids = np.concatenate([e["keys"] for e in exports])
    order = np.argsort(ids, kind="stable")
    sha.update(np.int64(len(ids)).tobytes())
    sha.update(ids[order].data)
    for name in ROW_COLUMNS[1:]:
        sha.update(np.concatenate([e[name] for e in exports])[order].data)
    counted = sorted((e for e in exports if "sketch_at" in e), key=lambda e: int(e["sketch_at"][0]))
    for name in SKETCH_COLUMNS[1:]:
        for export in counted:
            sha.update(export[name].tobytes())
    return sha.hexdigest()
