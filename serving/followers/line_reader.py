"""Reads the published weights of one line: the newest snapshot, then every step after it.

A gap needs a newer snapshot; until there is one, the applied state stays, and answers go on from it.
"""

import logging
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from parameter_server.publish.deltas import DeltaAssembler, Gap, StepDelta
from parameter_server.storage import snapshots
from parameter_server.storage.snapshot_rows import ServingRows, map_rows
from parameter_server.storage.snapshots import NoSnapshot, Snapshot
from recsys.clock import is_due
from recsys.events.records import DELTAS
from recsys.log.protocol import Log, LogLost, Record
from recsys.process.log_consumer import decoded

MAIN: Final = "main"
_MARGIN: Final = 64  # records before the first needed one: shards are at most a step apart
_AHEAD: Final = 256  # records that are searched for one of the line
_RETRY_MS: Final = 1_000


class _Head(msgspec.Struct):
    """Fields of a delta that locate it; the rest is skipped."""

    line: str
    epoch: int
    step: int


@dataclass(frozen=True)
class LoadedSnapshot:
    """A snapshot to start from. ``rows`` None: the line's beginning, all rows at their initial values."""

    line: str
    epoch: int
    step: int
    rows: ServingRows | None


class LineReader:
    """Reads snapshots and deltas of the live line. Used by one thread."""

    def __init__(self, log: Log, folder: Path, tables: Collection[str] | None = None) -> None:
        """``tables``: those whose rows are read; by default all."""
        self._log, self._folder, self._tables = log, folder, tables
        self.offset = log.begin(DELTAS, 0)
        self.assembler: DeltaAssembler | None = None
        self.gap: Gap | None = None
        self.gaps = 0
        self._epoch: int | None = None  # as requested; None: the newest
        self._tried_ms = self._rebased_ms = 0
        self._base: Snapshot | None = None  # in whose files the rows are
        self._unusable: tuple[int, int] | None = None  # the newest snapshot, if it is damaged
        self._reported = False  # that no newer base could be opened
        self._from_beginning = False  # whether the deltas were read from their beginning

    def start(self, line: str, epoch: int | None) -> LoadedSnapshot:
        """Switches to a line (epoch None: the newest); returns the snapshot to load before its steps."""
        self._epoch = epoch
        loaded = self._load(line)
        self._continue_after(loaded)
        return loaded

    def start_after(self, loaded: LoadedSnapshot) -> None:
        """As ``start``, with a snapshot that the caller loaded, maybe not the newest."""
        self._epoch = loaded.epoch
        self._continue_after(loaded)

    def _load(self, line: str) -> LoadedSnapshot:
        """Loads the newest usable snapshot; keeps the reader's position."""
        try:
            rows = map_rows(self._folder, line, self._epoch, wanted=self._tables)
            return LoadedSnapshot(line, rows.snapshot.epoch, rows.snapshot.step, rows)
        except NoSnapshot as error:
            if error.reasons:
                logging.getLogger(__name__).warning("unusable snapshots: %s", error.reasons)
            return LoadedSnapshot(line, self._epoch or 0, 0, None)

    def _continue_after(self, loaded: LoadedSnapshot) -> None:
        offset = self._first_after(loaded)
        self._from_beginning = offset == self._log.begin(DELTAS, 0)
        self.assembler = DeltaAssembler(loaded.line, loaded.epoch, loaded.step)
        self.offset, self.gap, self._unusable = offset, None, None
        self._base = loaded.rows and loaded.rows.snapshot

    def read(self, limit: int = 64) -> list[StepDelta]:
        """Reads up to ``limit`` records; returns the steps that became complete."""
        assert self.assembler is not None, "start first"
        steps: list[StepDelta] = []
        try:
            records = self._log.read(DELTAS, 0, self.offset, limit)
        except LogLost:
            self._note_gap(Gap(self.assembler.step + 1, 0, "retention passed what comes next"))
            self.offset = self._log.begin(DELTAS, 0)
            return steps
        for record in records:
            self.offset = record.offset + 1
            complete = self.assembler.feed(record.value)
            if isinstance(complete, Gap):
                self._note_gap(complete)
            else:
                steps.extend(complete)
        return steps

    def diverge(self, step: int) -> None:
        """Reports that the applied rows differ from the published ones at ``step``: only a newer snapshot
        helps, not reading further back. Called between two reads, in any thread."""
        assert self.assembler is not None, "start first"
        self._note_gap(self.assembler.diverge(step))
        self._from_beginning = True

    def mend(self, now_ms: int) -> LoadedSnapshot | None:
        """After a gap, tried about once a second: a newer snapshot to load; None while there is none."""
        due = is_due(now_ms, self._tried_ms + _RETRY_MS, _RETRY_MS)
        if self.gap is None or self.assembler is None or not due:
            return None
        self._tried_ms = now_ms
        line, epoch, step = self.assembler.line, self.assembler.epoch, self.assembler.step
        newest = self._newest(line)
        if newest > (epoch, step) and newest != self._unusable:
            loaded = self._load(line)
            if (loaded.epoch, loaded.step) > (epoch, step):
                self._continue_after(loaded)
                return loaded
            self._unusable = newest  # damaged, and older ones are behind: never go back
        if not self._from_beginning:  # the missing record may be further back
            self.offset, self._from_beginning, self.gap = self._log.begin(DELTAS, 0), True, None
            self.assembler = DeltaAssembler(line, epoch, step)
        return None

    def newer_base(self, now_ms: int, step: int, due: bool) -> ServingRows | None:
        """The newest intact snapshot of the applied line up to the applied ``step``, newer than the one in
        use. Looked for about once a second, where ``due``, or where the one in use was removed: it takes disk
        until it is let go. An error is logged once, and a later call tries again."""
        assert self.assembler is not None, "start first"
        if not is_due(now_ms, self._rebased_ms + _RETRY_MS, _RETRY_MS):
            return None
        self._rebased_ms, base = now_ms, self._base
        if not due and (base is None or base.folder.exists()):
            return None
        line, epoch = self.assembler.line, self.assembler.epoch
        after = base.step if base is not None and base.epoch == epoch else 0
        try:
            steps = snapshots.complete_steps(self._folder, line, epoch)
            for newer in reversed([s for s in steps if after < s <= step]):
                with suppress(NoSnapshot):  # damaged, or removed meanwhile
                    rows = map_rows(self._folder, line, epoch, newer, self._tables)
                    self._base, self._reported = rows.snapshot, False
                    return rows
        except (OSError, ValueError):  # such as too many open files
            if not self._reported:
                self._reported = True
                logging.getLogger(__name__).exception("no newer snapshot could be opened")
        return None

    def _newest(self, line: str) -> tuple[int, int]:
        """Version of the line's newest complete snapshot in the requested epoch; digests unchecked."""
        if self._epoch is not None:
            steps = snapshots.complete_steps(self._folder, line, self._epoch)
            return (self._epoch, steps[-1]) if steps else (-1, -1)
        latest = snapshots.latest(self._folder, line).snapshot
        return (latest.epoch, latest.step) if latest else (-1, -1)

    def _note_gap(self, gap: Gap) -> None:
        if self.gap is None:
            self.gaps += 1
            extra = {"reason": gap.reason, "expected": gap.expected} | self._place()
            logging.getLogger(__name__).warning("gap in the deltas", extra=extra)
        self.gap = gap

    def _place(self) -> dict[str, str | int]:
        at = self.assembler
        return {} if at is None else {"line": at.line, "epoch": at.epoch, "step": at.step}

    def _first_after(self, loaded: LoadedSnapshot) -> int:
        """Offset of the first delta after the snapshot, less a margin, by bisection."""
        begin, end = self._log.begin(DELTAS, 0), self._log.end(DELTAS, 0)
        low, high = begin, end
        while low < high:
            middle = (low + high) // 2
            version = self._version_at(loaded.line, self._log.read(DELTAS, 0, middle, _AHEAD))
            # A young line has no records for a long way, and then late ones.
            missing = version is None and loaded.line == MAIN
            if missing or (version is not None and version > (loaded.epoch, loaded.step)):
                high = middle
            else:
                low = middle + 1
        return max(begin, low - _MARGIN)

    def _version_at(self, line: str, records: Sequence[Record]) -> tuple[int, int] | None:
        """Version of the first record of the line; None without one."""
        heads = (head for _, head in decoded(records, _Head) if head.line == line)
        return next(((head.epoch, head.step) for head in heads), None)
