"""Durable shard: snapshots, write-ahead file and publication around the pure state machine.

A step is logged, applied, answered and published, in this order, and published before the next step is
logged. After any crash, snapshot and file restore the state bit for bit; only the newest step's publication
is in doubt: its delta is published again, identical. The file reaches back to the newest *complete* snapshot,
so each shard recovers on its own, and all to one step if needed.
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
from parameter_server.storage.changes import Changes
from parameter_server.storage.part_files import Update
from parameter_server.storage.wal import Wal
from parameter_server.table.dense import Vector
from parameter_server.table.routing import Keys, Rows
from recsys.arrays.id_map import Arrays
from recsys.events.records import pack
from recsys.process.malloc_tuning import return_freed_memory

TIDY_EVERY: Final = 16  # steps between two checks whether siblings completed a snapshot
Publish = Callable[[Sequence[bytes]], None]


@dataclass(frozen=True)
class ShardStorage:
    """Paths of a shard's files and how durably they are written."""

    snapshots: Path
    wal: Path
    snapshot_every: int = 500
    snapshots_kept: int = 3
    sync: bool = False  # fsync each step, to survive a power cut


class DurableShard:
    """Owns a shard and its files. Thread-safe."""

    def __init__(
        self, spec: ShardSpec, storage: ShardStorage, publish: Publish, dense: Vector | None = None,
        background: bool = False,
    ) -> None:  # fmt: skip
        """Recovers from the newest complete snapshot and the write-ahead file, else starts a new line.

        ``dense``: initial parameters, used on part 0 of a new line. ``background``: write snapshots in a
        thread, so that a step waits only for the copy. If the file doesn't reach back to the snapshot
        (``lost`` says so), the shard is at the snapshot and the line must ``rewind``.
        """
        self.spec, self._storage, self._publish = spec, storage, publish
        self._dense, self._background = dense, background
        self._lock = threading.RLock()
        # Taken within ``_lock`` or alone: lookups go on while a delta is published.
        self._publishing = threading.RLock()
        self._unpublished: list[bytes] = []  # grows and is replaced within ``_lock``
        self._writer: threading.Thread | None = None
        self._tidier: threading.Thread | None = None  # reads siblings' parts of a snapshot
        self._snapshot_due = False  # the newest step's snapshot is still to be taken
        self._untidy: int | None = None  # newest snapshot of which parts may be missing
        self._saved = 0  # newest step of which a snapshot was written
        self.snapshot_error = ""  # of the newest snapshot, if it could not be written
        self._wal = Wal(storage.wal, owner_of(spec), storage.sync, wal_settings_of(spec))
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
        return self._shard

    def lookup(self, step: int, keys: Mapping[str, Keys]) -> tuple[dict[str, Rows], Vector | None]:
        """Rows and (part 0) dense parameters after ``step``; raises StepMismatch."""
        with self._lock:
            return self._shard.lookup(step, keys), self._shard.dense_after(step)

    def learn(self, step: int, time_ms: int, lanes: Sequence[LaneGradients], publish: bool = True) -> None:
        """Logs and applies a step, unless already applied, and publishes its delta; without ``publish`` only
        the previous step's, and its own waits for ``flush``. Raises StepMismatch for a gap, and any error of
        writing or publishing; call it again after that: an interrupted snapshot is completed first."""
        with self._lock:
            self.flush()
            self._retry_snapshot()
            total = self._shard.merge(step, time_ms, lanes)
            if total is None:
                return
            self._wal.append(step, total.encode())
            self._unpublished.append(pack(self._shard.apply(total)))
            self._snapshot_due = self._is_due(self._shard)
            if publish:
                self.flush()
            if self._snapshot_due:
                self.snapshot()
            elif step % TIDY_EVERY == 0 and self._untidy is not None:
                if not self._background:
                    self._read_and_tidy()
                elif not (_is_alive(self._writer) or _is_alive(self._tidier)):
                    self._tidier = _started(self._try, step, self._read_and_tidy)

    def snapshot(self) -> None:
        """Writes this shard's part of a snapshot at the newest step and tidies up. Publishes first: the file,
        which could publish the step again, may be cut after it."""
        with self._lock:
            self.flush()
            step = self._shard.applied
            if _is_alive(self._writer):
                self._snapshot_due = False
                self.snapshot_error = f"step {step}: the one before is still being written"
                return
            update, meta = self._changes.export()
            if self._background:
                self._writer = _started(self._write_in_background, step, update, meta)
            else:
                self._write(step, update, meta)
            self._snapshot_due = False

    def rewind(self, step: int) -> None:
        """Returns to the complete snapshot at ``step`` and forgets later steps. All shards of the line must
        do the same; trainers then repeat the steps, with identical deltas."""
        self._join_writer()
        with self._lock, self._publishing:
            if self._shard.applied != step:
                self._start(step)
            self.lost = ""

    def digest(self) -> str:
        with self._lock:
            return self._shard.digest()

    def common_step(self) -> int:
        """Step of the newest complete and intact snapshot, to which the whole line can return."""
        return snapshots.require(self._storage.snapshots, self.spec.line, self.spec.epoch).step

    def status(self) -> dict[str, Any]:
        with self._lock:
            tables = self._shard.tables.items()
            return {
                "line": self.spec.line, "epoch": self.spec.epoch, "part": self.spec.part,
                "parts": self.spec.parts, "step": self._shard.applied, "time_ms": self._shard.clock_ms,
                "rows": {name: len(table) for name, table in tables},
                "waiting": {name: table.waiting for name, table in tables},
                "held_back": self._shard.published.withheld, "bytes": self._shard.nbytes,
                "table_bytes": {name: table.nbytes for name, table in tables},
                "wal_bytes": self._wal.nbytes, "wal_cut_bytes": self._wal.cut_bytes,
                "wal_damaged": self._wal.damaged, "unpublished": len(self._unpublished),
                "snapshot_error": self.snapshot_error, "passed_over": self.passed_over,
                "snapshots_damaged": snapshots.damaged(self._storage.snapshots, self.spec.line),
                "lost": self.lost, **vars(self._shard.counters),
            }  # fmt: skip

    def stop(self) -> None:
        """Takes a snapshot of steps that no snapshot holds, and closes. The next start replays nothing, so
        settings may change in between."""
        self._join_writer()
        with self._lock:
            if self._shard.applied > self._saved:
                try:
                    self.flush()
                    self._write(self._shard.applied, *self._changes.export())
                except Exception as error:  # the write-ahead file still has the steps
                    self.snapshot_error = f"step {self._shard.applied}: {error!r}"
                    logging.getLogger(__name__).warning("no snapshot: %s", self.snapshot_error)
        self.close()

    def close(self) -> None:
        """Closes the file; the next start replays it and publishes what waits. Nothing is published after it
        returns: the log may be closed."""
        self._join_writer()
        with self._lock, self._publishing:
            self._unpublished = []
            self._wal.close()

    def flush(self) -> None:
        """Publishes waiting deltas, also those that a crash left in doubt. Lookups go on meanwhile."""
        with self._publishing:
            deltas = list(self._unpublished)
            if deltas:
                self._publish(deltas)
                del self._unpublished[: len(deltas)]

    def _start(self, step: int | None = None) -> None:
        """Loads a snapshot and replays the file. Replaces the state at the end, for concurrent readers."""
        spec, storage, wal = self.spec, self._storage, self._wal
        shard = Shard(spec, self._dense if spec.part == 0 else None)
        newest = snapshots.latest(storage.snapshots, spec.line, spec.epoch, step)
        if step is not None and newest.snapshot is None:
            raise snapshots.NoSnapshot(f"{storage.snapshots}/{spec.line} at {step}", newest.reasons)
        if newest.snapshot is not None:
            load_shard(shard, newest.snapshot)
        base = shard.applied
        if step is not None:
            wal.clear()
        self._check_file(base, newest)
        self._unpublished, changes_after = [], Changes(shard, newest.snapshot)
        for _, payload in wal.records(after=base):
            # The newest alone: each was published before the next step was logged.
            self._unpublished = [pack(shard.apply(StepSum.decode(payload)))]
        self._shard, self.passed_over, self._saved = shard, newest.reasons, base
        self._changes = changes_after
        # A crash may have come between a step and its snapshot.
        self._snapshot_due = shard.applied > base and self._is_due(shard)
        if newest.snapshot is None and shard.applied == 0:
            self._write(0, *self._changes.export())  # replicas need a snapshot to start from

    def _check_file(self, base: int, newest: snapshots.LatestSnapshot) -> None:
        """Clears a file that doesn't continue from step ``base``. Refuses to lose steps or to replay them
        with other settings."""
        spec, storage, wal = self.spec, self._storage, self._wal
        first, last = wal.steps or (base + 1, base)
        reach = last if first == 1 else 0
        newest_step = snapshots.newest_step(storage.snapshots, spec.line, spec.epoch)
        if newest.snapshot is None and newest_step > reach:
            line = f"{storage.snapshots}/{spec.line}"
            raise snapshots.NoUsableSnapshot(line, storage.wal, newest.reasons)
        if first > base + 1:
            self.lost = f"snapshot {base}, write-ahead file {first} to {last}"
            wal.clear()
        elif last < base:
            # A power cut lost its end, or the number of shards changed: the snapshot holds all of it, and the
            # next step would leave a gap, at which the file would be cut.
            wal.clear()
        elif changed := changes(wal.settings, wal_settings_of(spec)):
            if last > base:
                raise WalSettingsChanged(storage.wal, (base + 1, last), changed)
            wal.clear()

    def _is_due(self, shard: Shard) -> bool:
        """Whether a snapshot is taken at a shard's newest step."""
        is_time = shard.settled or not self.spec.settle_s
        return is_time and shard.applied % self._storage.snapshot_every == 0

    def _retry_snapshot(self) -> None:
        """Takes the snapshot that a failed flush or write, or a crash, left out. A second failure is recorded
        and the line goes on: the file reaches back to the snapshot before."""
        if self._snapshot_due:
            self._snapshot_due = False
            self._try(self._shard.applied, self.snapshot)

    def _write_in_background(self, step: int, update: Update, meta: dict[str, Any]) -> None:
        if not self._try(step, lambda: self._write(step, update, meta)):
            self._try(step, lambda: self._write(step, update, meta))
        return_freed_memory()  # of the copy and of the steps beside it

    def _try(self, step: int, write: Callable[[], None]) -> bool:
        try:
            write()
        except Exception as error:
            self.snapshot_error = f"step {step}: {error!r}"
            return False
        return True

    def _write(self, step: int, update: Update, meta: dict[str, Any]) -> None:
        spec, folder = self.spec, self._storage.snapshots
        place = (spec.line, spec.epoch, step, spec.part, spec.parts)
        written = snapshots.write_part(folder, *place, update, meta)
        with self._lock:
            self._changes.written(written, meta)
            self.snapshot_error = ""
            self._untidy, self._saved = step, max(step, self._saved)
        self._read_and_tidy()

    def _read_and_tidy(self) -> None:
        """Removes files that the newest complete snapshot supersedes; it is read while steps go on. Siblings
        may still write their parts."""
        spec, storage = self.spec, self._storage
        complete = snapshots.intact_steps(storage.snapshots, spec.line, spec.epoch)
        with self._lock:
            if complete and self._untidy is not None:
                self._tidy(complete[-1])

    def _tidy(self, step: int) -> None:
        spec, storage = self.spec, self._storage
        snapshots.sync_snapshot(storage.snapshots, spec.line, spec.epoch, step)
        self._wal.truncate_before(step + 1)
        snapshots.prune(storage.snapshots, spec.line, storage.snapshots_kept, spec.epoch)
        if step >= (self._untidy or 0):
            self._untidy = None

    def _join_writer(self) -> None:
        for thread in filter(None, (self._writer, self._tidier)):
            thread.join()


def _started(work: Callable[..., object], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=work, args=arguments)
    thread.start()
    return thread


def _is_alive(thread: threading.Thread | None) -> bool:
    return thread is not None and thread.is_alive()


def owner_of(spec: ShardSpec) -> str:
    return f"{spec.line}/{spec.epoch}/{spec.part}-of-{spec.parts}"


def load_shard(shard: Shard, snapshot: snapshots.Snapshot) -> None:
    """Fills a new shard from a snapshot written by any number of shards."""
    if snapshot.parts == shard.spec.parts:
        part = shard.spec.part
        shard.load([snapshot.read(part)], snapshot.meta(part))
        return
    parts = range(snapshot.parts)
    arrays = [snapshot.read(part) for part in parts]
    load_resharded(shard, arrays, [snapshot.meta(part) for part in parts])


def load_resharded(shard: Shard, parts: Sequence[Arrays], metas: Sequence[dict[str, Any]]) -> None:
    """Fills a new shard from the exports of all parts of another number of shards."""
    meta = dict(metas[0]) | {  # part 0 takes all counts, to keep their sum over shards
        name: sum(m[name] for m in metas) if shard.spec.part == 0 else 0
        for name in vars(shard.counters)
        if name in metas[0]
    }
    shard.load(parts, meta)
