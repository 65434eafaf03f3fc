"""Bugs that can be planted, each with the invariants that may find it, and the fault without which no run
finds it (none: those of all runs)."""

import json
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
import numpy as np
import pytest

from parameter_server.publish import deltas
from parameter_server.publish.deltas import DeltaAssembler, seal
from parameter_server.publish.published import PublishedRows
from parameter_server.publish.withheld_rows import WithheldRows
from parameter_server.shard import shard
from parameter_server.shard.lanes import StepSum, add_lanes
from parameter_server.shard.shard import Shard
from parameter_server.storage import changes, snapshots
from parameter_server.storage.durable_shard import DurableShard
from parameter_server.storage.part_files import Update, sha256_of
from parameter_server.storage.wal import Wal
from parameter_server.table.table import Table
from recsys.process.log_consumer import Consumer
from serving.followers.line_reader import LineReader
from training.joining import joiner_loop
from training.joining.joiner import Joiner
from training.joining.joiner_loop import JoinerLoop
from training.steps import sequencer_loop
from training.steps.sequencer import Sequencer

Patch = pytest.MonkeyPatch
BUGS: dict[str, tuple[Callable[[Patch], None], set[str], str]] = {}
JOINED = ("an example is appended once", "examples are those of an undisturbed join")
DIGEST = "digest is that of the undisturbed run"
AGAIN = "a delta published again is the same"
COUNTED = "nothing is lost or counted twice"
KEPT = "what was answered is kept"


def bug(*names: str, fault: str = "") -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    """Registers a bug with the invariants that may find it, and the extra fault that it needs."""

    def register(plant: Callable[[Patch], None]) -> Callable[[Patch], None]:
        BUGS[plant.__name__] = plant, set(names), fault
        return plant

    return register


AS_PUBLISHED = "digests of published and replica rows are equal"
COPIED = (
    "published and replica rows are equal",
    "a replica drops what expired",
    "a replica has every row",
    "dense parameters are equal",
    AS_PUBLISHED,
    "what isn't held back is published",
)


@bug(*JOINED)
def offset_saved_before_state(patch: Patch) -> None:
    real, before = JoinerLoop.save, dict[tuple[int, int], bytes]()

    def save(self: JoinerLoop) -> None:
        joiners = self._joiners
        packed = {p: joiner.pack() for p, joiner in joiners.items()}
        for p, joiner in joiners.items():
            if (id(self), p) in before:
                vars(joiner)["pack"] = partial(bytes, before[id(self), p])
        real(self)
        for joiner in joiners.values():
            vars(joiner).pop("pack", None)
        before.update({(id(self), p): blob for p, blob in packed.items()})

    patch.setattr(JoinerLoop, "save", save)


@bug(*JOINED)
def sequence_reused_after_restart(patch: Patch) -> None:
    real = Joiner.restore

    def restore(self: Joiner, blob: bytes) -> None:
        real(self, blob)
        self.sequence = max(0, self.sequence - 1)

    patch.setattr(Joiner, "restore", restore)


@bug(*JOINED)
def output_not_looked_up_after_restart(patch: Patch) -> None:
    patch.setattr(joiner_loop, "sequences_after", lambda log, partition, sequence: set())


@bug(COUNTED)
def correction_counted_twice(patch: Patch) -> None:
    real = Joiner._emit

    def emit(self: Joiner, held: Any, index: int, impression: Any, closed_ms: int, out: Any) -> None:
        learned, before = held.learned[index], len(out)
        real(self, held, index, impression, closed_ms, out)
        if learned >= 0:
            held.learned[index] = learned  # so that the next engagement corrects it again
        out += [msgspec.structs.replace(e, sequence=self.sequence) for e in out[before:] if e.correction]

    patch.setattr(Joiner, "_emit", emit)
    patch.setattr(
        "tests.support.simulation.simulator_oracles.check_examples", lambda run: None
    )  # both joins have the bug


@bug("steps cover examples once", "steps are numbered")
def sequencer_forgets_its_newest_step(patch: Patch) -> None:
    real = sequencer_loop.last_position

    def last_position(*args: Any) -> Any:
        place = real(*args)
        return place._replace(offsets={p: max(0, o - 1) for p, o in place.offsets.items()})

    patch.setattr(sequencer_loop, "last_position", last_position)


@bug(AGAIN, COUNTED, DIGEST, AS_PUBLISHED)
def step_applied_twice_after_restart(patch: Patch) -> None:
    real = DurableShard._start

    def start(self: DurableShard, step: int | None = None) -> None:
        real(self, step)
        for _, payload in list(self._wal.records(after=self._shard.applied - 1)):
            total = StepSum.decode(payload)
            for name, rows in total.tables.items():
                self._shard.tables[name].apply(*rows, self._shard.clock_ms)

    patch.setattr(DurableShard, "_start", start)


@bug(KEPT)
def wal_not_synced_before_the_answer(patch: Patch) -> None:
    real = Wal.append

    def append(self: Wal, step: int, payload: bytes) -> None:
        self._sync = False
        real(self, step, payload)

    patch.setattr(Wal, "append", append)


@bug("every step is published")
def written_down_before_the_step_before_is_published(patch: Patch) -> None:
    real_learn, real_flush = DurableShard.learn, DurableShard.flush

    def learn(self: DurableShard, *its: Any, **more: Any) -> None:
        patch.setattr(DurableShard, "flush", lambda self: None)
        try:
            real_learn(self, *its, **more)
        finally:
            patch.setattr(DurableShard, "flush", real_flush)

    patch.setattr(DurableShard, "learn", learn)


@bug(KEPT)
def wal_cut_behind_a_snapshot_that_siblings_lack(patch: Patch) -> None:
    real = DurableShard._read_and_tidy

    def read_and_tidy(self: DurableShard) -> None:
        if self._untidy is not None:
            self._wal.truncate_before(self._untidy + 1)
        real(self)

    patch.setattr(DurableShard, "_read_and_tidy", read_and_tidy)


@bug("it goes on", DIGEST, KEPT)
def torn_tail_of_the_wal_accepted(patch: Patch) -> None:
    def opened(self: Wal) -> int:
        data = self.path.read_bytes()
        end = len(self._head)
        while end + 16 <= len(data):
            length, _, step = struct.unpack_from("<IIQ", data, end)
            self._offsets.append((step, end))
            end = min(end + 16 + length, len(data))
        return end

    patch.setattr(Wal, "_open", opened)


@bug("a named snapshot is whole")
def snapshot_renamed_before_it_is_complete(patch: Patch) -> None:
    def write_part(folder, line, epoch, step, part, parts, arrays, meta):  # type: ignore[no-untyped-def]
        target = folder / line / f"{epoch:06d}-{step:012d}" / f"part-{part:05d}-of-{parts:05d}"
        target.mkdir(parents=True, exist_ok=True)
        path = target / "arrays.safetensors"
        snapshots.save_file(dict(arrays.arrays), path)
        said = {"line": line, "epoch": epoch, "step": step, "part": part, "parts": parts}
        manifest = said | {"sha256": sha256_of(path), "chain": [], "meta": dict(meta)}
        (target / "manifest.json").write_text(json.dumps(manifest))
        return target

    patch.setattr(snapshots, "write_part", write_part)
    patch.setattr(changes, "increment", lambda *_: None)


@bug(AGAIN, DIGEST, *COPIED)
def rows_that_left_come_back_with_an_increment(patch: Patch) -> None:
    real = changes.increment

    def increment(base: Any, arrays: Any) -> Any:
        return real(base, {n: a[:0] if n.endswith("/removed") else a for n, a in arrays.items()})

    patch.setattr(changes, "increment", increment)


@bug(AGAIN, DIGEST, AS_PUBLISHED, "who comes back is new")
def optimizer_state_left_out_of_the_snapshot(patch: Patch) -> None:
    real = Shard.export

    def export(self: Shard) -> Any:
        arrays, meta = real(self)
        arrays = {k: v * 0 if k.endswith("/accumulator") else v for k, v in arrays.items()}
        return Update(arrays), meta

    patch.setattr(DurableShard, "snapshot", _snapshot_with(export))


def _snapshot_with(export: Callable[[Shard], Any]) -> Callable[[DurableShard], None]:
    def snapshot(self: DurableShard) -> None:
        self._write(self._shard.applied, *export(self._shard))

    return snapshot


@bug("who comes back is new", AS_PUBLISHED, AGAIN)
def optimizer_state_left_behind_at_expiry(patch: Patch) -> None:
    remove, insert = Table.remove, Table._insert
    left: dict[tuple[int, int], float] = {}

    def removes(self: Table, keys: Any) -> Any:
        slots = self._ids.find(np.ascontiguousarray(keys, np.int64))
        for key, slot in zip(keys.tolist(), slots.tolist(), strict=True):
            if slot >= 0:
                left[id(self), key] = float(self._ids.columns["accumulator"][slot])
        return remove(self, keys)

    def inserts(self: Table, keys: Any) -> Any:
        slots = insert(self, keys)
        for key, slot in zip(keys.tolist(), slots.tolist(), strict=True):
            self._ids.columns["accumulator"][slot] = left.get((id(self), key), 0.0)
        return slots

    patch.setattr(Table, "remove", removes)
    patch.setattr(Table, "_insert", inserts)


@bug(*COPIED)
def tombstone_not_published(patch: Patch) -> None:
    real = Shard.apply

    def apply(self: Shard, total: StepSum) -> Any:
        delta = real(self, total)
        tables = [msgspec.structs.replace(rows, removed=b"") for rows in delta.tables]
        return seal(msgspec.structs.replace(delta, tables=tables))

    patch.setattr(Shard, "apply", apply)


@bug(*COPIED)
def delta_without_base_check(patch: Patch) -> None:
    def ready(self: DeltaAssembler) -> Any:
        return min((k for k, parts in self._waiting.items() if len(parts) == k[2]), default=None)

    patch.setattr(DeltaAssembler, "_next", ready)


@bug("a step is applied as it was published", "it goes on")
def delta_without_checksum(patch: Patch) -> None:
    patch.setattr(deltas, "is_sound", lambda delta: True)


@bug("every step is published")
def delta_not_published_again_after_a_crash(patch: Patch) -> None:
    real = DurableShard._start

    def start(self: DurableShard, step: int | None = None) -> None:
        real(self, step)
        self._unpublished.clear()

    patch.setattr(DurableShard, "_start", start)


@bug(DIGEST)
def lane_order_dropped(patch: Patch) -> None:
    def unordered(step: int, time_ms: int, lanes: Any, dims: Any) -> StepSum:
        return add_lanes(step, time_ms, [replace(x, lane=n) for n, x in enumerate(lanes)], dims)

    patch.setattr(shard, "add_lanes", unordered)


@bug(AGAIN, *COPIED)
def held_back_row_forgotten(patch: Patch) -> None:
    real = WithheldRows.put

    def put(self: WithheldRows, rows: Any) -> None:
        real(self, {name: column[1:] for name, column in rows.items()})

    patch.setattr(WithheldRows, "put", put)


@bug(AGAIN, *COPIED)
def held_back_rows_left_out_of_the_snapshot(patch: Patch) -> None:
    real = PublishedRows.export

    def export(self: PublishedRows) -> Any:
        return {name: array[:0] for name, array in real(self).items()}

    def snapshot(self: DurableShard) -> None:
        self.flush()
        with pytest.MonkeyPatch.context() as within:
            within.setattr(PublishedRows, "export", export)
            arrays, meta = self._shard.export()
            self._write(self._shard.applied, Update(arrays), meta)

    patch.setattr(DurableShard, "snapshot", snapshot)


@bug(AS_PUBLISHED, AGAIN)
def tombstone_not_in_the_digest(patch: Patch) -> None:
    real, moved = PublishedRows._count, PublishedRows._moved
    removing = [False]

    def _moved(self: PublishedRows, name: str, change: Any) -> Any:
        removing[0] = True  # the first count is of the removed rows
        return moved(self, name, change)

    def _count(self: PublishedRows, *given: Any) -> None:
        if not removing[0]:
            real(self, *given)
        removing[0] = False

    patch.setattr(PublishedRows, "_moved", _moved)
    patch.setattr(PublishedRows, "_count", _count)


@bug(KEPT, "it goes on", "it settles", fault="full disk")
def write_given_up_after_three_attempts(patch: Patch) -> None:
    """One failed write is made good, a disk that stays full isn't noticed."""
    real = Wal.append

    def append(self: Wal, step: int, payload: bytes) -> None:
        for _ in range(3):
            with suppress(OSError):
                return real(self, step, payload)

    patch.setattr(Wal, "append", append)


@bug("it settles", fault="clock")
def partial_step_waits_for_the_clock(patch: Patch) -> None:
    real = Sequencer.cut

    def cut(self: Sequencer, now_ms: int, *idle: bool) -> Any:
        began_ms = self._waiting[0][0] if self._waiting else now_ms
        few = len(self._waiting) < self.config.examples
        return None if few and now_ms < began_ms else real(self, now_ms, *idle)

    patch.setattr(Sequencer, "cut", cut)


@bug("the replica arrives", fault="clock")
def gap_waits_for_the_clock(patch: Patch) -> None:
    real = LineReader.mend

    def mend(self: LineReader, now_ms: int) -> Any:
        return None if now_ms < self._tried_ms else real(self, now_ms)

    patch.setattr(LineReader, "mend", mend)


@bug(*JOINED, "steps cover examples once", "it goes on", fault="kafka")
def next_offset_counted_instead_of_read(patch: Patch) -> None:
    def poll(self: Consumer, limit: int = 1000) -> Any:
        read = {p: self._log.read(self._topic, p, at, limit) for p, at in self.offsets.items()}
        for partition, records in read.items():
            self.offsets[partition] += len(records)
        return [(partition, record) for partition, records in read.items() for record in records]

    patch.setattr(Consumer, "poll", poll)
