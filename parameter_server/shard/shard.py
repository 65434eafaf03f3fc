"""A shard: the part of all tables that one process owns, as a pure state machine over steps.

Step *s* moves the state from "after s-1" to "after s", once: a step that has been applied is ignored, one
that leaves a hole is refused. One step of undo is kept, so that a shard which is a step ahead of its sibling
(which died before it wrote the step down) still answers for "after s-1" while workers compute *s* again.
Nothing here reads a clock, a file or a socket; ``parameter_server.storage.durable_shard`` makes it last.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parameter_server.publish.deltas import seal
from parameter_server.publish.published import Change, PublishedRows, Removed
from parameter_server.publish.rounding import check_format, round_dense
from parameter_server.publish.withheld_rows import WITHHELD_COLUMNS
from parameter_server.shard import gradient_rejections as refusals
from parameter_server.shard.lanes import LaneGradients, StepSum, add_lanes
from parameter_server.table.dense import DENSE_COLUMNS, Dense, Vector
from parameter_server.table.routing import Keys, Rows, as_keys, shard_of
from parameter_server.table.sketch import SKETCH_COLUMNS
from parameter_server.table.table import MAX_GRADIENT, ROW_COLUMNS, Arrays, Table, digest_of_exports
from recsys.config.system_config import TableConfig
from recsys.events.records import Delta


class StepMismatch(RuntimeError):
    """A shard isn't where the caller thinks. Ask ``where()`` and go on from the step before the slowest."""

    def __init__(self, part: int, asked: int, applied: int) -> None:
        super().__init__(
            f"shard {part} has applied step {applied}, and was asked for step {asked}: "
            f"it can look up after {applied} or {applied - 1} and learn {applied + 1}; ask where() and "
            "compute the missing step again, or go back to the newest common snapshot"
        )
        self.part, self.asked, self.applied = part, asked, applied


@dataclass(frozen=True)
class ShardSpec:
    """What a shard is: equal specs and equal steps give equal bits."""

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
    expire_every: int = 64  # steps between two looks for rows past their time-to-live
    bound: float = MAX_GRADIENT
    delta_format: str = "fp32"  # see parameter_server.publish.rounding
    delta_bytes: int = (
        0  # of rows that a step sends; 0 sends all. See parameter_server.publish.published
    )
    settle_every: int = 500  # steps between two that send whatever is held back
    digest_every: int = 64  # steps between two that say the digest of what was published

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
class Counters:
    """What happened since the line began: part of the state, so a replay counts the same."""

    updated: int = 0
    inserted: int = 0
    expired: int = 0
    evicted: int = 0  # left because of the budget, the least recently used first
    refused_rows: int = 0
    refused_dense: int = 0


@dataclass(frozen=True)
class _Undo:
    """Rows and dense parameters as they were before the newest step, keys in no order."""

    rows: Mapping[str, tuple[Keys, Rows]] = field(default_factory=dict)
    dense: Vector | None = None


def part_of(spec: ShardSpec, part: int) -> ShardSpec:
    """The spec of one part of a line."""
    return replace(spec, part=part)


class Shard:
    """Tables and, on part 0, the dense parameters of one (line, epoch). Not thread-safe; the owner locks."""

    def __init__(
        self,
        spec: ShardSpec,
        dense: Vector | None = None,
        tables: Mapping[str, Table] | None = None,
    ) -> None:
        """A line's beginning, before step 1. ``dense`` (P,): the initial parameters, for part 0 alone.
        ``tables``: by name, where they are others than new ones of ``spec`` (see ``open_mmap_shard``)."""
        if dense is not None and spec.part != 0:
            raise ValueError(f"part is {spec.part}, but dense parameters live on part 0 alone")
        self.spec = spec
        self.tables = dict(tables or {}) or {
            t.name: Table(t, spec.seed, spec.bound, spec.part, spec.parts) for t in spec.tables
        }
        self.dense = None
        if dense is not None:
            self.dense = Dense(
                dense, spec.dense_rate, spec.bound, spec.dense_average, spec.dense_first
            )
        self.published = PublishedRows(spec.tables, spec.seed, spec.delta_format, spec.delta_bytes)
        self.applied = 0
        self.clock_ms = 0  # the newest event time seen: it never goes back, whatever steps say
        self.counters = Counters()
        self._undo: _Undo | None = None

    def lookup(self, step: int, keys: Mapping[str, Keys]) -> dict[str, Rows]:
        """Rows by table, in the order of the keys, as they are after ``step``.

        Raises StepMismatch unless ``step`` is the newest or, through the undo, the one before it.
        """
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
        """The dense parameters after ``step``, None on other parts than 0; raises as ``lookup`` does."""
        undo = self._undo_for(step)
        if self.dense is None:
            return None
        return self.dense.values if undo is None or undo.dense is None else undo.dense

    def learn(self, step: int, time_ms: int, lanes: Sequence[LaneGradients]) -> Delta | None:
        """Learns from all lanes of a step; None where it has been applied. Raises StepMismatch for a hole."""
        total = self.merge(step, time_ms, lanes)
        return None if total is None else self.apply(total)

    def merge(self, step: int, time_ms: int, lanes: Sequence[LaneGradients]) -> StepSum | None:
        """The sum that ``apply`` would learn from, changing nothing; None where the step has been applied."""
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
        return refusals.mark_rejected(total, lanes, self.spec.bound, self.spec.part)

    def _check_dense(self, lanes: Sequence[LaneGradients]) -> None:
        """Before anything is written down: what can't be applied would come back at each start."""
        for lane in lanes:
            if self.dense is None or lane.dense is None:
                continue
            its, expected = np.asarray(lane.dense), self.dense.values
            if (its.shape, its.dtype) != (expected.shape, expected.dtype):
                raise ValueError(
                    f"lane {lane.lane}: the dense gradient is {its.dtype} {its.shape}, expected "
                    f"{expected.dtype} {expected.shape}; start workers and shards with one configuration"
                )

    def apply(self, total: StepSum) -> Delta:
        """Applies the next step's sum, made now or read from the write-ahead file: equal sums, equal bits."""
        if total.step != self.applied + 1:
            raise StepMismatch(self.spec.part, total.step, self.applied)
        self.clock_ms = max(self.clock_ms, total.time_ms)
        undo: dict[str, tuple[Keys, Rows]] = {}
        changes: dict[str, Change] = {}
        for name, table in self.tables.items():
            changes[name], undo[name] = self._apply_table(total, table)
        before = self.dense.values if self.dense is not None else None
        if self.dense is not None and total.dense is not None:
            self.counters.refused_dense += not self.dense.apply(total.dense, total.rate)
        self._undo = _Undo(undo, before)
        self.applied = total.step
        return self._delta(total, changes)

    def _delta(self, total: StepSum, changes: Mapping[str, Change]) -> Delta:
        """What is published of the newest step."""
        spec, dense = self.spec, b""
        settle = total.step % spec.settle_every == 0
        held = total.held and not settle
        rows = self.published.publish(
            changes, lambda name, k: self.tables[name].lookup(k), settle, held
        )
        if self.dense is not None and not held:
            dense, _ = round_dense(self.dense.averaged, spec.delta_format)
        return seal(
            Delta(
                line=spec.line,
                epoch=spec.epoch,
                step=total.step,
                base_step=total.step - 1,
                part=spec.part,
                parts=spec.parts,
                tables=rows,
                format=spec.delta_format,
                dense=dense,
                metrics={
                    name: value
                    for name, value in total.metrics.items()
                    if spec.part == 0 or name.startswith(refusals.PREFIX)
                },
                time_ms=self.clock_ms,
                digest=self.published.digest if total.step % spec.digest_every == 0 else None,
            )
        )

    def _apply_table(self, total: StepSum, table: Table) -> tuple[Change, tuple[Keys, Rows]]:
        """Learns, then removes what expired or is to be forgotten; returns the change and how to undo it."""
        name, none = table.config.name, np.empty(0, np.int64)
        part, forget = total.tables.get(name), total.forget.get(name, none)
        expiry = total.step % self.spec.expire_every == 0
        learned = none if part is None else part.keys
        stale = table.stale(self.clock_ms) if expiry else none
        leaving = np.union1d(forget, stale)
        (old, there), (left, was_there) = table.lookup_known(learned), table.lookup_known(leaving)
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
            np.concatenate([np.ones(len(evicted), np.bool_), was_there[at]]),
        )
        if not changed.all():
            kept, rows, known, counts = (
                learned[changed],
                old[changed],
                there[changed],
                counts[changed],
            )
        else:
            kept, rows, known = learned, old, there
        moved = part is None or len(gone)  # rows may stand elsewhere since they were learned
        after = table.lookup(kept) if moved else table.rows_at(done.slots)
        change = Change(kept, rows, known, after, counts, removed)
        undo = (
            np.concatenate([learned, leaving, evicted]),
            np.concatenate([old, left, evicted_rows]),
        )
        return change, undo

    def _undo_for(self, step: int) -> _Undo | None:
        if step == self.applied:
            return None
        if step == self.applied - 1 and self._undo is not None:
            return self._undo
        raise StepMismatch(self.spec.part, step, self.applied)

    def export(self) -> tuple[Arrays, dict[str, Any]]:
        """Everything, for a snapshot: arrays by name ("table/NAME/COLUMN", "held/NAME/COLUMN",
        "dense/COLUMN"), and numbers and the format that was published in."""
        arrays: Arrays = {}
        for name, table in self.tables.items():
            arrays |= {f"table/{name}/{k}": v for k, v in table.export().items()}
        if self.dense is not None:
            arrays |= {f"dense/{k}": v for k, v in self.dense.export().items()}
        arrays |= self.published.export()
        meta = {
            "step": self.applied,
            "clock_ms": self.clock_ms,
            "delta_format": self.spec.delta_format,
        }
        return arrays, meta | vars(self.counters)

    def load(self, parts: Sequence[Mapping[str, NDArray[Any]]], meta: Mapping[str, Any]) -> None:
        """Becomes what was exported, from its own part or, where the number of shards changes, from all:
        it takes the rows that it owns. Only for a shard that has learned nothing."""
        for arrays in parts:
            for name, table in self.tables.items():
                columns = {k: arrays[f"table/{name}/{k}"] for k in ROW_COLUMNS}
                counted = {k: arrays[f"table/{name}/{k}"] for k in SKETCH_COLUMNS
                           if f"table/{name}/{k}" in arrays}  # fmt: skip
                columns = self._owned(columns)
                table.load(columns | counted)
                held = {k: arrays[f"held/{name}/{k}"] for k in WITHHELD_COLUMNS
                        if f"held/{name}/{k}" in arrays}  # fmt: skip
                held = self._owned(held) if held else held
                self.published.load(name, columns["keys"], columns["values"], held)
            if self.dense is not None and "dense/values" in arrays:
                self.dense.load({k: arrays[f"dense/{k}"] for k in DENSE_COLUMNS})
        self.applied, self.clock_ms = meta["step"], meta["clock_ms"]
        self.counters = Counters(**{k: meta.get(k, 0) for k in vars(self.counters)})

    def _owned(self, arrays: Arrays) -> Arrays:
        if self.spec.parts == 1:
            return arrays
        mine = shard_of(as_keys(arrays["keys"]), self.spec.parts) == self.spec.part
        return {name: column[mine] for name, column in arrays.items()}

    @property
    def nbytes(self) -> int:
        return sum(table.nbytes for table in self.tables.values())

    def digest(self) -> str:
        """SHA-256 of all state. Shards that together hold one line: see ``digest_of_shards``, without what is
        held back from replicas, for that depends on their number."""
        sha = hashlib.sha256(digest_of_shards([self]).encode())
        for array in self.published.export().values():
            sha.update(array.tobytes())
        return sha.hexdigest()


def digest_of_shards(shards: Sequence[Shard]) -> str:
    """SHA-256 of a line's rows, optimizer and dense parameters: the same for any number of shards."""
    sha = hashlib.sha256()
    for name in sorted(shards[0].tables):
        sha.update(name.encode())
        sha.update(digest_of_exports([s.tables[name].export() for s in shards]).encode())
    for shard in shards:
        if shard.dense is not None:
            sha.update(shard.dense.digest().encode())
    sha.update(f"{shards[0].applied} {shards[0].clock_ms}".encode())
    return sha.hexdigest()
