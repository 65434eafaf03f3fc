"""Shard: one process's part of all tables, as a pure state machine over steps.

A repeated step is ignored, a gap is refused. One step of undo lets a shard that is a step ahead of a crashed
sibling answer for the step before while workers compute it again. ``storage.durable_shard`` adds files.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parameter_server.publish.deltas import seal
from parameter_server.publish.published import PublishedRows, Removed, TableChange
from parameter_server.publish.rounding import check_format, round_dense
from parameter_server.publish.withheld_rows import WITHHELD_COLUMNS
from parameter_server.shard.gradient_rejections import PREFIX, mark_rejected
from parameter_server.shard.lanes import LaneGradients, StepSum, add_lanes
from parameter_server.table.dense import DENSE_COLUMNS, SENT, Dense, Vector
from parameter_server.table.routing import Keys, Rows, as_keys, shard_of
from parameter_server.table.sketch import SKETCH_COLUMNS
from parameter_server.table.table import MAX_GRADIENT, ROW_COLUMNS, Table, columns_in, digest_of_exports
from recsys.arrays.id_map import Arrays
from recsys.config.system_config import TableConfig
from recsys.events.records import Delta


class StepMismatch(RuntimeError):
    """The shard is at another step. Ask ``applied_steps()`` and go on from the slowest shard."""

    def __init__(self, part: int, asked: int, applied: int) -> None:
        super().__init__(
            f"shard {part} has applied step {applied}, and was asked for step {asked}: "
            f"it can look up after {applied} or {applied - 1} and learn {applied + 1}; ask applied_steps(), "
            "compute the missing step again, or go back to the newest common snapshot"
        )
        self.part, self.asked, self.applied = part, asked, applied


@dataclass(frozen=True)
class ShardSpec:
    """Settings of a shard: equal specs and equal steps give equal bits."""

    tables: tuple[TableConfig, ...]
    lanes: int
    part: int = 0
    parts: int = 1
    line: str = "main"
    epoch: int = 0
    seed: int = 0
    dense_rate: float = 0.001
    dense_average: float = 0.0  # see parameter_server.table.dense
    dense_first: float = 1.0
    expire_every: int = 64  # steps between two searches for rows past their time-to-live
    bound: float = MAX_GRADIENT
    delta_format: str = "fp32"  # see parameter_server.publish.rounding
    delta_bytes: int = 0  # of rows a step sends; 0: all (see parameter_server.publish.published)
    # A step whose number is a multiple of ``settle_every`` sends all withheld rows, if ``settle_s`` seconds
    # of event time have passed since the last that did.
    settle_every: int = 500
    settle_s: int = 0
    # Event time between two steps that send dense parameters; one that sends withheld rows does, too.
    dense_every_ms: int = 0
    digest_every: int = 64  # steps between two deltas with a digest of the published rows

    def __post_init__(self) -> None:
        names = [table.name for table in self.tables]
        if len(set(names)) != len(names):
            raise ValueError(f"tables are {names}, expected distinct names")
        if not 0 <= self.part < self.parts:
            raise ValueError(f"part is {self.part}, expected 0 to {self.parts - 1}")
        for name in ("lanes", "expire_every", "settle_every", "digest_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 1 or more")
        check_format(self.delta_format)

    @property
    def dims(self) -> dict[str, int]:
        return {table.name: table.dim for table in self.tables}


@dataclass
class ShardCounts:
    """Counts since the line began: part of the state, so a replay counts the same."""

    updated: int = 0
    inserted: int = 0
    expired: int = 0
    evicted: int = 0  # removed because of the budget
    refused_rows: int = 0
    refused_dense: int = 0


@dataclass(frozen=True)
class _Undo:
    """Rows and dense parameters before the newest step, keys in no order. Never written to: the step's
    gradients and ``TableChange`` may have the same arrays."""

    rows: Mapping[str, tuple[Keys, Rows]] = field(default_factory=dict)
    dense: Vector | None = None


def part_of(spec: ShardSpec, part: int) -> ShardSpec:
    return replace(spec, part=part)


class Shard:
    """Tables and, on part 0, the dense parameters of one (line, epoch). Not thread-safe; the owner locks."""

    def __init__(
        self, spec: ShardSpec, dense: Vector | None = None, tables: Mapping[str, Table] | None = None
    ) -> None:
        """Starts before step 1. ``dense`` (P,): initial parameters, for part 0 only. ``tables``: by name,
        instead of new ones of ``spec`` (see ``open_mmap_shard``)."""
        if dense is not None and spec.part != 0:
            raise ValueError(f"part is {spec.part}, but dense parameters live on part 0 alone")
        self.spec = spec
        self.tables = dict(tables or {}) or {
            t.name: Table(t, spec.seed, spec.bound, spec.part, spec.parts) for t in spec.tables
        }
        self.dense = None
        if dense is not None:
            settings = spec.dense_rate, spec.bound, spec.dense_average, spec.dense_first
            self.dense = Dense(dense, *settings)
            self._sent = self._rounded_dense(spec.delta_format)  # what replicas hold
        self.published = PublishedRows(spec.tables, spec.seed, spec.delta_format, spec.delta_bytes)
        self.applied = 0
        self.clock_ms = 0  # newest event time seen; never goes back
        self.settled = False  # whether the newest step sent all withheld rows
        self.settled_ms = 0  # event time of the last step that did
        self._dense_ms = 0  # event time of the newest step that sent dense parameters
        self.counters = ShardCounts()
        self._undo: _Undo | None = None
        # Keys removed since an export, by table; None: nobody asks (see ``storage.changes``).
        self.removed: dict[str, list[Keys]] | None = None

    def lookup(self, step: int, keys: Mapping[str, Keys]) -> dict[str, Rows]:
        """Rows by table after ``step``, in the order of the keys. Raises StepMismatch unless ``step`` is the
        newest or, by undo, the one before it."""
        undo = self._undo_for(step)
        for name in keys.keys() - self.tables.keys():
            raise ValueError(f"no table {name!r}; there are {', '.join(self.tables)}")
        rows = {name: self.tables[name].lookup(ids) for name, ids in keys.items()}
        if undo is not None:
            for name, (old_keys, old_rows) in undo.rows.items():
                if name in rows and len(old_keys):
                    ids, order = as_keys(keys[name]), np.argsort(old_keys)
                    at = np.searchsorted(old_keys, ids, sorter=order)
                    at = order[np.minimum(at, len(order) - 1)]
                    changed = old_keys[at] == ids
                    rows[name][changed] = old_rows[at[changed]]
        return rows

    def dense_after(self, step: int) -> Vector | None:
        """Dense parameters after ``step``, None on parts other than 0; raises as ``lookup`` does."""
        undo = self._undo_for(step)
        if self.dense is None:
            return None
        return self.dense.values if undo is None or undo.dense is None else undo.dense

    def learn(self, step: int, time_ms: int, lanes: Sequence[LaneGradients]) -> Delta | None:
        """Applies all lanes of a step; None if already applied. Raises StepMismatch for a gap."""
        total = self.merge(step, time_ms, lanes)
        return None if total is None else self.apply(total)

    def merge(self, step: int, time_ms: int, lanes: Sequence[LaneGradients]) -> StepSum | None:
        """Sum for ``apply``, changing nothing; None if the step was applied already."""
        if step <= self.applied:
            return None
        if step != self.applied + 1:
            raise StepMismatch(self.spec.part, step, self.applied)
        numbers = sorted(lane.lane for lane in lanes)
        if numbers != list(range(self.spec.lanes)):
            raise ValueError(
                f"step {step} came with lanes {numbers}, expected each of 0 to {self.spec.lanes - 1} once"
            )
        self._check_dense(lanes)
        total = add_lanes(step, time_ms, lanes, self.spec.dims)
        return mark_rejected(total, lanes, self.spec.bound, self.spec.part)

    def _check_dense(self, lanes: Sequence[LaneGradients]) -> None:
        """Refuses gradients before they are logged: a replay would fail on them at each start."""
        for lane in lanes:
            if self.dense is None or lane.dense is None:
                continue
            gradient, expected = np.asarray(lane.dense), self.dense.values
            if not self.dense.fits_model(gradient) or gradient.dtype != expected.dtype:
                raise ValueError(
                    f"lane {lane.lane}: the dense gradient is {gradient.dtype} {gradient.shape}, expected "
                    f"{expected.dtype} {expected.shape}; start workers and shards with one configuration"
                )

    def apply(self, total: StepSum) -> Delta:
        """Applies the next step's sum, new or from the write-ahead file: equal sums, equal bits."""
        if total.step != self.applied + 1:
            raise StepMismatch(self.spec.part, total.step, self.applied)
        self.clock_ms = max(self.clock_ms, total.time_ms)
        is_time = self.clock_ms - self.settled_ms >= 1000 * self.spec.settle_s
        self.settled = is_time and total.step % self.spec.settle_every == 0
        if self.settled:
            self.settled_ms = self.clock_ms
        undo: dict[str, tuple[Keys, Rows]] = {}
        changes: dict[str, TableChange] = {}
        for name, table in self.tables.items():
            changes[name], undo[name] = self._apply_table(total, table)
            gone = changes[name].removed.keys
            if self.removed is not None and len(gone):
                self.removed[name].append(gone)
        before = self.dense.values if self.dense is not None else None
        if self.dense is not None and total.dense is not None:
            self.counters.refused_dense += not self.dense.apply(total.dense, total.rate)
        self._undo = _Undo(undo, before)
        self.applied = total.step
        return self._delta(total, changes)

    def _delta(self, total: StepSum, changes: Mapping[str, TableChange]) -> Delta:
        spec, dense = self.spec, b""
        tables = self.tables
        rows = self.published.publish(changes, lambda n, k: tables[n].lookup(k), self.settled)
        is_time = self.settled or self.clock_ms - self._dense_ms >= spec.dense_every_ms
        if self.dense is not None and is_time:
            dense, self._sent = round_dense(self.dense.averaged, spec.delta_format)
            self._dense_ms = self.clock_ms
        metrics = total.metrics
        if spec.part:
            metrics = {name: value for name, value in metrics.items() if name.startswith(PREFIX)}
        delta = Delta(
            line=spec.line, epoch=spec.epoch, step=total.step, base_step=total.step - 1,
            part=spec.part, parts=spec.parts, tables=rows, format=spec.delta_format, dense=dense,
            metrics=dict(metrics), time_ms=self.clock_ms,
            digest=self.published.digest if total.step % spec.digest_every == 0 else None,
        )  # fmt: skip
        return seal(delta)

    def _rounded_dense(self, format: str) -> Vector:
        assert self.dense is not None
        return round_dense(self.dense.averaged, format)[1]

    def _apply_table(self, total: StepSum, table: Table) -> tuple[TableChange, tuple[Keys, Rows]]:
        """Applies gradients, then removes expired and forgotten rows; returns the change and its undo."""
        name, none = table.config.name, np.empty(0, np.int64)
        part, forget = total.tables.get(name), total.forget.get(name, none)
        expiry = total.step % self.spec.expire_every == 0
        learned = none if part is None else part.keys
        stale = table.stale(self.clock_ms) if expiry else none
        leaving = np.union1d(forget, stale)
        old, existed = table.lookup_known(learned)
        left, left_existed = table.lookup_known(leaving)
        counts, changed = np.empty(0, np.int32), np.empty(0, np.bool_)
        evicted, evicted_rows = none, left[:0]
        if part is not None:
            done = table.apply(*part, self.clock_ms, total.rate)
            self.counters.updated += len(done.keys)
            self.counters.inserted += done.inserted
            self.counters.refused_rows += done.refused
            self.counters.evicted += len(done.evicted)
            counts, evicted, evicted_rows = part.counts, done.evicted, done.evicted_rows
            changed = done.changed
        gone = none
        if len(forget):
            gone = table.remove(forget)
            changed &= ~np.isin(learned, gone)
        if expiry:
            expired = table.expire(self.clock_ms, stale)
            self.counters.expired += len(expired)
            gone = np.concatenate([gone, expired])
        at = np.searchsorted(leaving, gone)
        removed = Removed(
            np.concatenate([evicted, gone]),
            np.concatenate([evicted_rows, left[at]]),
            np.concatenate([np.ones(len(evicted), np.bool_), left_existed[at]]),
        )
        keys, before = learned, old
        if not changed.all():
            keys, before = keys[changed], before[changed]
            existed, counts = existed[changed], counts[changed]
        moved = part is None or len(gone)  # removals move rows to other slots
        after = table.lookup(keys) if moved else table.rows_at(done.slots)
        change = TableChange(keys, before, existed, after, counts, removed)
        if not (len(leaving) or len(evicted)):
            return change, (learned, old)
        touched = np.concatenate([learned, leaving, evicted])
        return change, (touched, np.concatenate([old, left, evicted_rows]))

    def _undo_for(self, step: int) -> _Undo | None:
        if step == self.applied:
            return None
        if step == self.applied - 1 and self._undo is not None:
            return self._undo
        raise StepMismatch(self.spec.part, step, self.applied)

    def export(self, since_ms: int | None = None) -> tuple[Arrays, dict[str, Any]]:
        """All state, for a snapshot: arrays named "table/NAME/COLUMN", "held/NAME/COLUMN", "dense/COLUMN" and
        ``SENT`` (while replicas hold older dense parameters), and metadata (counts, delta format).
        ``since_ms``: of the tables, rows changed since then and the keys of ``removed``
        ("table/NAME/removed")."""
        arrays: Arrays = {}
        for name, table in self.tables.items():
            columns = table.export() if since_ms is None else table.export_since(since_ms)
            if since_ms is not None and self.removed is not None:
                gone = [np.empty(0, np.int64), *self.removed[name]]
                columns["removed"] = np.unique(np.concatenate(gone))
            arrays |= {f"table/{name}/{k}": v for k, v in columns.items()}
        if self.dense is not None:
            arrays |= {f"dense/{k}": v for k, v in self.dense.export().items()}
            if not np.array_equal(self._sent, self._rounded_dense(self.spec.delta_format)):
                arrays[SENT] = self._sent
        arrays |= self.published.export()
        meta = {"step": self.applied, "clock_ms": self.clock_ms, "settled_ms": self.settled_ms}
        meta |= {"dense_ms": self._dense_ms}
        return arrays, meta | {"delta_format": self.spec.delta_format} | vars(self.counters)

    def load(self, parts: Sequence[Mapping[str, NDArray[Any]]], meta: Mapping[str, Any]) -> None:
        """Restores exports, of its own part or (after a change of the number of shards) of all parts, taking
        the rows that it owns. Only for a shard without steps."""
        for arrays in parts:
            for name, table in self.tables.items():
                rows = self._owned(columns_in(arrays, f"table/{name}/", ROW_COLUMNS))
                table.load(rows | columns_in(arrays, f"table/{name}/", SKETCH_COLUMNS))
                withheld = columns_in(arrays, f"held/{name}/", WITHHELD_COLUMNS)
                withheld = self._owned(withheld) if withheld else withheld
                self.published.load(name, rows["keys"], rows["values"], withheld)
            if self.dense is not None and "dense/values" in arrays:
                self.dense.load({k: arrays[f"dense/{k}"] for k in DENSE_COLUMNS})
                newest = self._rounded_dense(meta.get("delta_format", "fp32"))
                self._sent = arrays.get(SENT, newest)
        self.applied, self.clock_ms = meta["step"], meta["clock_ms"]
        self.settled_ms, self._dense_ms = meta.get("settled_ms", 0), meta.get("dense_ms", 0)
        self.counters = ShardCounts(**{k: meta.get(k, 0) for k in vars(self.counters)})

    def _owned(self, arrays: Arrays) -> Arrays:
        if self.spec.parts == 1:
            return arrays
        owned = shard_of(as_keys(arrays["keys"]), self.spec.parts) == self.spec.part
        return {name: column[owned] for name, column in arrays.items()}

    @property
    def nbytes(self) -> int:
        return sum(table.nbytes for table in self.tables.values())

    def digest(self) -> str:
        """SHA-256 of all state, with the withheld rows, which depend on the number of shards (see
        ``digest_of_shards``)."""
        sha = hashlib.sha256(digest_of_shards([self]).encode())
        for array in self.published.export().values():
            sha.update(array.tobytes())
        return sha.hexdigest()


def digest_of_shards(shards: Sequence[Shard]) -> str:
    """SHA-256 of a line's rows, optimizer and dense parameters, equal for any number of shards."""
    sha = hashlib.sha256()
    for name in sorted(shards[0].tables):
        sha.update(name.encode())
        sha.update(digest_of_exports([s.tables[name].export() for s in shards]).encode())
    for shard in shards:
        if shard.dense is not None:
            sha.update(shard.dense.digest().encode())
    sha.update(f"{shards[0].applied} {shards[0].clock_ms}".encode())
    return sha.hexdigest()
