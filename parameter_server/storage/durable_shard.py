"""A shard that lasts: snapshot + write-ahead file + publication around the pure state machine.

The order within a step is: write down, apply, answer, publish; and it is published before the next step is
written down. So after a crash anywhere, snapshot and file give the state back bit for bit, and only the
newest step's publication is in doubt: its delta is published again, identical, and consumers drop the repeat.
The file reaches back to the newest *complete* snapshot, which is also what a shard starts from; so shards
come back on their own, and to one step when they must.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from parameter_server.shard.lanes import LaneGradients, StepSum
from parameter_server.shard.shard import Shard, ShardSpec
from parameter_server.shard.wal_settings import WalSettingsChanged, changes, wal_settings_of
from parameter_server.storage import snapshots
from parameter_server.storage.wal import Wal
from parameter_server.table.dense import Vector
from parameter_server.table.routing import Keys, Rows
from parameter_server.table.table import Arrays
from recsys.events.records import pack

TIDY_EVERY: Final = 16  # steps between two looks for siblings' parts of a snapshot
Publish = Callable[[Sequence[bytes]], None]


@dataclass(frozen=True)
class ShardStorage:
    """Where a shard keeps its state and how hard."""

    snapshots: Path
    wal: Path
    snapshot_every: int = 500
    snapshots_kept: int = 3
    sync: bool = False  # ask the disk at each step: outlives a power cut


class DurableShard:
    """Owns a shard and its files. Every method may be called from any thread."""

    def __init__(
        self,
        spec: ShardSpec,
        home: ShardStorage,
        publish: Publish,
        dense: Vector | None = None,
        background: bool = False,
    ) -> None:
        """Starts from the newest complete snapshot and the file after it; else at the line's beginning.

        ``dense``: the initial parameters, used on part 0 of a new line. ``background``: write snapshots in a
        thread, so that a step waits only for the copy. Where the file doesn't reach back to the snapshot
        (``lost`` says so), the shard stands at the snapshot, and the line must ``rewind``.
        """
        self.spec, self._home, self._publish = spec, home, publish
        self._dense, self._background = dense, background
        self._lock = threading.RLock()
        # Taken within ``_lock`` or alone: rows are looked up while a delta is published.
        self._publishing = threading.RLock()
        self._unpublished: list[bytes] = []  # grows and is replaced within ``_lock``
        self._writer: threading.Thread | None = None
        self._untidy: int | None = None  # the newest snapshot, until all its parts are there
        self._saved = 0  # the newest step that a snapshot was begun from, or written of
        self.snapshot_error = ""  # of the newest snapshot that could not be written
        self._wal = Wal(home.wal, owner_of(spec), home.sync, wal_settings_of(spec))
        self.passed_over: list[str] = []
        self.lost = ""
        try:
            self._start()
        except BaseException:
            self._wal.close()
            raise

    @property
    def applied(self) -> int:
        return self._shard.applied

    @property
    def shard(self) -> Shard:
        """The state machine, to look at."""
        return self._shard

    def lookup(self, step: int, keys: Mapping[str, Keys]) -> tuple[dict[str, Rows], Vector | None]:
        """Rows and (part 0) dense parameters after ``step``; raises StepMismatch."""
        with self._lock:
            return self._shard.lookup(step, keys), self._shard.dense_after(step)

    def learn(
        self, step: int, time_ms: int, lanes: Sequence[LaneGradients], publish: bool = True
    ) -> None:
        """Learns a step for good, or does nothing where it has been. When it returns, its delta is published;
        without ``publish`` that of the step before is, and its own waits for ``flush``.

        Raises StepMismatch for a hole, and whatever writing or publishing raises: call it again then.
        """
        with self._lock:
            self.flush()
            total = self._shard.merge(step, time_ms, lanes)
            if total is None:
                return
            self._wal.append(step, total.encode())
            self._apply(total)
            if publish:
                self.flush()
            if step % self._home.snapshot_every == 0:
                self.snapshot()
            elif step % TIDY_EVERY == 0:
                self._tidy()

    def snapshot(self) -> None:
        """Writes this shard's part of a snapshot at the newest step, and tidies up behind it. Whatever is in
        it has been published: the file, which could tell it again, may be cut behind it."""
        with self._lock:
            self.flush()
            step = self._shard.applied
            if self._writer is not None and self._writer.is_alive():
                self.snapshot_error = f"step {step}: the one before is still being written"
                return
            arrays, meta = self._shard.export()
            if not self._background:
                self._write(step, arrays, meta)
                return
            self._writer = threading.Thread(target=self._try_to_write, args=(step, arrays, meta))
            self._writer.start()

    def rewind(self, step: int) -> None:
        """Goes back to the complete snapshot at ``step`` and forgets what came after: all shards of the line
        must do the same. Trainers then repeat the steps, whose deltas are identical to those published."""
        self._join_writer()
        with self._lock, self._publishing:
            if self._shard.applied != step:
                self._start(step)
            self.lost = ""

    def digest(self) -> str:
        """SHA-256 of the whole state."""
        with self._lock:
            return self._shard.digest()

    def common_step(self) -> int:
        """The newest step that the whole line can go back to: of a complete snapshot without a flaw."""
        found = snapshots.latest(self._home.snapshots, self.spec.line, self.spec.epoch)
        if found.snapshot is None:
            raise snapshots.NoSnapshot(f"{self._home.snapshots}/{self.spec.line}", found.reasons)
        return found.snapshot.step

    def status(self) -> dict[str, Any]:
        """Numbers for the dashboard."""
        with self._lock:
            tables = {name: len(table) for name, table in self._shard.tables.items()}
            return {
                "line": self.spec.line,
                "epoch": self.spec.epoch,
                "part": self.spec.part,
                "parts": self.spec.parts,
                "step": self._shard.applied,
                "time_ms": self._shard.clock_ms,
                "rows": tables,
                "waiting": {name: t.waiting for name, t in self._shard.tables.items()},
                "held_back": self._shard.published.withheld,
                "bytes": self._shard.nbytes,
                "table_bytes": {name: t.nbytes for name, t in self._shard.tables.items()},
                "wal_bytes": self._wal.nbytes,
                "wal_cut_bytes": self._wal.cut_bytes,
                "unpublished": len(self._unpublished),
                "snapshot_error": self.snapshot_error,
                "passed_over": self.passed_over,
                "lost": self.lost,
                **vars(self._shard.counters),
            }

    def stop(self) -> None:
        """A clean stop: takes a snapshot of what no snapshot holds yet, and closes. So the next start replays
        nothing, and settings may change in between."""
        self._join_writer()
        with self._lock:
            if self._shard.applied > self._saved:
                try:
                    self.flush()
                    self._write(self._shard.applied, *self._shard.export())
                except Exception as error:  # the file has it all the same
                    self.snapshot_error = f"step {self._shard.applied}: {error!r}"
                    logging.getLogger(__name__).warning("no snapshot: %s", self.snapshot_error)
        self.close()

    def close(self) -> None:
        """Closes the file; the next start replays it, and publishes what waits. When it returns, nothing is
        being published, or will be: the log may be closed."""
        self._join_writer()
        with self._lock, self._publishing:
            self._unpublished = []
            self._wal.close()

    def _start(self, step: int | None = None) -> None:
        """Whoever looks meanwhile sees the state of before: it is replaced when the new one is whole."""
        spec, home, wal = self.spec, self._home, self._wal
        shard = Shard(spec, self._dense if spec.part == 0 else None)
        found = snapshots.latest(home.snapshots, spec.line, spec.epoch, step)
        if step is not None and found.snapshot is None:
            raise snapshots.NoSnapshot(f"{home.snapshots}/{spec.line} at {step}", found.reasons)
        if found.snapshot is not None:
            load_shard(shard, found.snapshot)
        base = shard.applied
        if step is not None:
            wal.clear()
        self._check_file(base, found)
        self._unpublished = []
        for _, payload in wal.records(after=base):
            # Only the newest: published before the step after it was written down.
            self._unpublished = [pack(shard.apply(StepSum.decode(payload)))]
        self._shard, self.passed_over, self._saved = shard, found.reasons, base
        if found.snapshot is None and shard.applied == 0:
            arrays, meta = shard.export()
            self._write(0, arrays, meta)  # replicas need something to start from

    def _check_file(self, base: int, found: snapshots.LatestSnapshot) -> None:
        """Whether the file goes on from a start at step ``base``: what doesn't is cleared, and what would be
        lost by that, or replayed as it never was, is refused."""
        spec, home, wal = self.spec, self._home, self._wal
        first, last = wal.steps or (base + 1, base)
        reach = last if first == 1 else 0
        newest = snapshots.newest_step(home.snapshots, spec.line, spec.epoch)
        if found.snapshot is None and newest > reach:
            raise snapshots.NoUsableSnapshot(f"{home.snapshots}/{spec.line}", home.wal, found.reasons)
        if first > base + 1:
            self.lost = f"snapshot {base}, write-ahead file {first} to {last}"
            wal.clear()
        elif last < base:
            # A power cut took its end, or it is of an earlier number of shards: the snapshot holds all of it,
            # and the next step behind it would leave a hole, at which the file would be cut.
            wal.clear()
        elif differs := changes(wal.rules, wal_settings_of(spec)):
            if last > base:
                raise WalSettingsChanged(home.wal, (base + 1, last), differs)
            wal.clear()

    def _apply(self, total: StepSum) -> None:
        self._unpublished.append(pack(self._shard.apply(total)))

    def flush(self) -> None:
        """Publishes what waits for it, or what a crash left in doubt. Steps may be looked up meanwhile."""
        with self._publishing:
            deltas = list(self._unpublished)
            if deltas:
                self._publish(deltas)
                del self._unpublished[: len(deltas)]

    def _try_to_write(self, step: int, arrays: Arrays, meta: Mapping[str, Any]) -> None:
        try:
            self._write(step, arrays, meta)
        except Exception as error:  # the line goes on: the file reaches back to the snapshot before
            self.snapshot_error = f"step {step}: {error!r}"

    def _write(self, step: int, arrays: Arrays, meta: Mapping[str, Any]) -> None:
        spec, home = self.spec, self._home
        snapshots.write_part(
            home.snapshots, spec.line, spec.epoch, step, spec.part, spec.parts, arrays, meta
        )
        with self._lock:
            self.snapshot_error = ""
            self._untidy, self._saved = step, max(step, self._saved)
            self._tidy()

    def _tidy(self) -> None:
        """Drops what the newest complete snapshot makes needless. Siblings may still be writing theirs."""
        if self._untidy is None:
            return
        spec, home = self.spec, self._home
        complete = snapshots.complete_steps(home.snapshots, spec.line, spec.epoch)
        if complete:
            snapshots.sync_snapshot(home.snapshots, spec.line, spec.epoch, complete[-1])
            self._wal.truncate_before(complete[-1] + 1)
            snapshots.prune(home.snapshots, spec.line, home.snapshots_kept, spec.epoch)
            if complete[-1] >= self._untidy:
                self._untidy = None

    def _join_writer(self) -> None:
        if self._writer is not None:
            self._writer.join()


def owner_of(spec: ShardSpec) -> str:
    """Whose a write-ahead file is."""
    return f"{spec.line}/{spec.epoch}/{spec.part}-of-{spec.parts}"


def load_shard(shard: Shard, snapshot: snapshots.Snapshot) -> None:
    """Fills a new shard from a snapshot, whatever number of shards wrote it."""
    if snapshot.parts == shard.spec.parts:
        part = shard.spec.part
        shard.load([snapshot.read(part)], snapshot.meta(part))
        return
    parts = range(snapshot.parts)
    load_resharded(shard, [snapshot.read(part) for part in parts], [snapshot.meta(p) for p in parts])


def load_resharded(shard: Shard, parts: Sequence[Arrays], metas: Sequence[Mapping[str, Any]]) -> None:
    """Fills a new shard from the exports of all parts of another number of shards."""
    meta = dict(metas[0]) | {  # what was counted goes to part 0, so that the sum over shards stays
        name: sum(m[name] for m in metas) if shard.spec.part == 0 else 0
        for name in metas[0].keys() - {"step", "clock_ms", "delta_format"}
    }
    shard.load(parts, meta)
