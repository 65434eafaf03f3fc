"""A table: rows by id with their optimizer state, admitted when seen often enough, expired when unused.

Row-wise Adagrad (Duchi et al. 2011, one accumulator a row as FBGEMM's EXACT_ROWWISE_ADAGRAD): with g the
summed gradient of a row of dimension D,

    a ← a + (Σ_j g_j²) / D        w ← w - rate · g / (√a + ε)

A table knows neither steps nor shards nor the wall clock: time is event time and handed in. Where a row
stands depends on the order of insertion and removal; nothing that is published or digested does.
"""

# N keys in a batch, D dimension, R rows

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from parameter_server import kernels
from parameter_server.id_map import IdMap, grown
from parameter_server.routing import Keys, Rows, as_keys, as_rows
from recsys.config import TableConfig
from recsys.hashing import key_of

EPSILON: Final = 1e-8
# Of one component, summed over a step: far beyond what a sound loss gives.
MAX_GRADIENT: Final = 1e3
ROW_COLUMNS: Final = ("keys", "values", "accumulator", "used_ms")
Arrays = dict[str, NDArray[Any]]


def table_seed(seed: int, table: str) -> int:
    """The seed of a table's initial values: the same id differs between tables."""
    return key_of(f"table\x1f{seed}", table) & 0xFFFF_FFFF_FFFF_FFFF


def initial_rows(config: TableConfig, seed: int, keys: Keys) -> Rows:
    """Where rows start, (N, D): uniform in ±initial, a pure function of (seed, table, key).

    Equal to ``(2 · uniforms(table_seed, keys, D) - 1) · initial`` of ``recsys.hashing``.
    """
    keys = as_keys(keys)
    out = np.zeros((len(keys), config.dim), np.float32)
    if config.initial:
        targets = np.arange(len(keys))
        kernels.draw(np.uint64(table_seed(seed, config.name)), config.initial, keys, targets, out)
    return out


@dataclass(frozen=True)
class Applied:
    """What one ``apply`` did. ``keys`` are the rows that changed, in the order given."""

    keys: Keys
    inserted: int
    refused: int  # a gradient that isn't finite or exceeds the bound: the row stays as it is
    waiting: int  # not seen often enough for a row of its own


class Table:
    """The rows of one table that one shard owns. Not thread-safe; the owner locks."""

    def __init__(self, config: TableConfig, seed: int, bound: float = MAX_GRADIENT) -> None:
        self.config = config
        self._bound = bound
        self._seed = np.uint64(table_seed(seed, config.name))
        self._ids = IdMap()
        self._values = np.zeros((8, config.dim), np.float32)
        self._accumulator = np.zeros(8, np.float32)
        self._used_ms = np.zeros(8, np.int64)
        self._waiting = IdMap()
        self._seen = np.zeros(8, np.int64)
        self._seen_ms = np.zeros(8, np.int64)

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def waiting(self) -> int:
        """How many ids have been seen, but not often enough."""
        return len(self._waiting)

    @property
    def nbytes(self) -> int:
        columns = (self._values, self._accumulator, self._used_ms, self._seen, self._seen_ms)
        return self._ids.nbytes + self._waiting.nbytes + sum(c.nbytes for c in columns)

    def lookup(self, keys: Keys) -> Rows:
        """The rows of keys, (N, D). An id without a row gets its initial value, and no row by being asked."""
        keys = as_keys(keys)
        out = np.empty((len(keys), self.config.dim), np.float32)
        slots = self._ids.find(keys)
        kernels.gather(self._values, slots, self._seed, self.config.initial, keys, out)
        return out

    def apply(self, keys: Keys, gradients: Rows, counts: NDArray[np.int32], now_ms: int) -> Applied:
        """Learns from summed gradients (N, D) of distinct keys; ``counts`` are the examples behind each."""
        keys, gradients = as_keys(keys), as_rows(gradients)
        if gradients.shape != (len(keys), self.config.dim):
            raise ValueError(
                f"table {self.config.name}: gradients have shape {gradients.shape}, "
                f"expected {(len(keys), self.config.dim)}"
            )
        sound = np.empty(len(keys), np.bool_)
        refused = int(kernels.screen(gradients, self._bound, sound))
        slots = self._ids.find(keys)
        new = np.flatnonzero((slots < 0) & sound)
        admitted = self._admit(keys, counts, new, now_ms)
        if len(admitted):
            slots[admitted] = self._insert(keys[admitted])
        if refused:
            slots[~sound] = kernels.EMPTY
        rate = self.config.learning_rate
        kernels.adagrad(self._values, self._accumulator, self._used_ms, slots, gradients, rate,
                        EPSILON, now_ms)  # fmt: skip
        changed = keys if len(admitted) == len(new) and not refused else keys[slots >= 0]
        return Applied(changed, len(admitted), refused, len(new) - len(admitted))

    def expire(self, now_ms: int) -> Keys:
        """Removes rows unused for longer than the time-to-live; returns their keys, ascending."""
        stale = self.stale(now_ms)
        if self.config.ttl_s:
            before_ms = now_ms - 1000 * self.config.ttl_s
            self._forget(np.flatnonzero(self._seen_ms[: len(self._waiting)] < before_ms))
        return self.remove(stale)

    def stale(self, now_ms: int) -> Keys:
        """The keys of rows unused for longer than the time-to-live, ascending: what ``expire`` removes."""
        if not self.config.ttl_s:
            return np.empty(0, np.int64)
        slots = np.flatnonzero(self._used_ms[: len(self)] < now_ms - 1000 * self.config.ttl_s)
        return np.sort(self._ids.keys[slots])

    def remove(self, keys: Keys) -> Keys:
        """Removes the rows of distinct keys; returns those that had one, ascending. The next free slots are
        those rows', zeroed, so nothing of them is left."""
        keys = as_keys(keys)
        waiting = self._waiting.find(keys)
        self._forget(waiting[waiting >= 0])
        slots = self._ids.find(keys)
        self._drop(slots[slots >= 0])
        return np.sort(keys[slots >= 0])

    def export(self) -> Arrays:
        """Copies of everything, for a snapshot: rows in no particular order."""
        rows, waiting = len(self._ids), len(self._waiting)
        return {
            "keys": self._ids.keys.copy(),
            "values": self._values[:rows].copy(),
            "accumulator": self._accumulator[:rows].copy(),
            "used_ms": self._used_ms[:rows].copy(),
            "waiting_keys": self._waiting.keys.copy(),
            "waiting_seen": self._seen[:waiting].copy(),
            "waiting_ms": self._seen_ms[:waiting].copy(),
        }

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Adds the rows of an export to an empty table (or one that has none of them)."""
        slots = self._insert(as_keys(arrays["keys"]))
        self._values[slots] = arrays["values"]
        self._accumulator[slots] = arrays["accumulator"]
        self._used_ms[slots] = arrays["used_ms"]
        slots = self._wait(as_keys(arrays["waiting_keys"]))
        self._seen[slots] = arrays["waiting_seen"]
        self._seen_ms[slots] = arrays["waiting_ms"]

    def digest(self) -> str:
        """SHA-256 of all state, whatever the order in which it came about."""
        return digest_of_exports([self.export()])

    def _admit(self, keys: Keys, counts: NDArray[np.int32], new: Keys, now_ms: int) -> Keys:
        """Which of the ``new`` positions get a row now; the others are remembered as seen."""
        if self.config.admit_after <= 1 or not len(new):
            return new
        slots = self._wait(keys[new])
        self._seen[slots] += np.asarray(counts)[new]
        self._seen_ms[slots] = now_ms
        enough = self._seen[slots] >= self.config.admit_after
        self._forget(slots[enough])
        return new[enough]

    def _insert(self, keys: Keys) -> Keys:
        slots = self._ids.insert(keys)
        rows = len(self._ids)
        if rows > len(self._values):
            self._values = grown(self._values, rows)
            self._accumulator = grown(self._accumulator, rows)
            self._used_ms = grown(self._used_ms, rows)
        kernels.draw(self._seed, self.config.initial, keys, slots, self._values)
        return slots

    def _wait(self, keys: Keys) -> Keys:
        slots = self._waiting.insert(keys)
        if len(self._waiting) > len(self._seen):
            self._seen = grown(self._seen, len(self._waiting))
            self._seen_ms = grown(self._seen_ms, len(self._waiting))
        return slots

    def _forget(self, slots: Keys) -> None:
        if len(slots):
            moves = self._waiting.remove(slots)
            moves.apply(self._seen)
            moves.apply(self._seen_ms)

    def _drop(self, slots: Keys) -> None:
        if len(slots):
            moves = self._ids.remove(slots)
            for column in (self._values, self._accumulator, self._used_ms):
                moves.apply(column)


def digest_of_exports(exports: Sequence[Mapping[str, NDArray[Any]]]) -> str:
    """SHA-256 of a table that several shards hold parts of: the same however it is cut up."""
    sha = hashlib.sha256()
    for keys, *columns in (ROW_COLUMNS, ("waiting_keys", "waiting_seen", "waiting_ms")):
        ids = np.concatenate([e[keys] for e in exports])
        order = np.argsort(ids, kind="stable")
        sha.update(np.int64(len(ids)).tobytes())
        sha.update(ids[order].tobytes())
        for name in columns:
            sha.update(np.concatenate([e[name] for e in exports])[order].tobytes())
    return sha.hexdigest()
