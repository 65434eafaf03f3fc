"""The weights of one line as they are published: the newest snapshot, then every step after it.

A gap is mended by a newer snapshot; until one is there, what was applied stays, and answers go on from it.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from parameter_server.publish.deltas import DeltaAssembler, Gap, StepDelta
from parameter_server.storage import snapshots
from parameter_server.storage.serving_rows import ServingRows, load_rows
from parameter_server.storage.snapshots import NoSnapshot
from recsys.events.records import DELTAS
from recsys.log.protocol import Log, LogLost

MAIN: Final = "main"
_MARGIN: Final = 64  # records before the first that is needed: shards are a step apart at most
_AHEAD: Final = 256  # records that are looked through for one of the line
_RETRY_MS: Final = 1_000


class _Head(msgspec.Struct):
    """What is read of a delta to find one's place: the rest is skipped."""

    line: str
    epoch: int
    step: int


@dataclass(frozen=True)
class Loaded:
    """A snapshot to start from; ``rows`` None: the line's beginning, all rows at their initial values."""

    line: str
    epoch: int
    step: int
    rows: ServingRows | None


class LineReader:
    """Reads snapshots and deltas of the live line. Used by one thread."""

    def __init__(self, log: Log, folder: Path) -> None:
        self._log, self._folder = log, folder
        self.offset = log.begin(DELTAS, 0)
        self.assembler: DeltaAssembler | None = None
        self.gap: Gap | None = None
        self.gaps = 0
        self._epoch: int | None = None  # as asked for; None: whatever is newest
        self._tried_ms = 0
        self._useless: tuple[int, int] | None = None  # the newest snapshot, where it can't be used
        self._whole = False  # whether the deltas were read from their very beginning

    def start(self, line: str, epoch: int | None) -> Loaded:
        """Goes to a line (of the newest epoch, without one): what to load, before the steps after it."""
        self._epoch = epoch
        loaded = self._load(line)
        self._go_on_after(loaded)
        return loaded

    def start_after(self, loaded: Loaded) -> None:
        """As ``start``, with what the caller has loaded: maybe an older snapshot than the newest."""
        self._epoch = loaded.epoch
        self._go_on_after(loaded)

    def _load(self, line: str) -> Loaded:
        """The newest usable snapshot; nothing of where this reader stands changes."""
        try:
            rows = load_rows(self._folder, line, self._epoch)
            return Loaded(line, rows.snapshot.epoch, rows.snapshot.step, rows)
        except NoSnapshot as error:
            if error.reasons:
                logging.getLogger(__name__).warning("snapshots passed over: %s", error.reasons)
            return Loaded(line, self._epoch or 0, 0, None)

    def _go_on_after(self, loaded: Loaded) -> None:
        offset = self._first_after(loaded)
        self._whole = offset == self._log.begin(DELTAS, 0)
        self.assembler = DeltaAssembler(loaded.line, loaded.epoch, loaded.step)
        self.offset, self.gap, self._useless = offset, None, None

    def read(self, limit: int = 64) -> list[StepDelta]:
        """The steps that became complete. ``limit``: of records read."""
        assert self.assembler is not None, "start first"
        steps: list[StepDelta] = []
        try:
            records = self._log.read(DELTAS, 0, self.offset, limit)
        except LogLost:
            self._found(Gap(self.assembler.step + 1, 0, "retention passed what comes next"))
            self.offset = self._log.begin(DELTAS, 0)
            return steps
        for record in records:
            self.offset = record.offset + 1
            found = self.assembler.feed(record.value)
            if isinstance(found, Gap):
                self._found(found)
            else:
                steps.extend(found)
        return steps

    def diverge(self, step: int) -> None:
        """What was applied up to ``step`` isn't what was published. Reading further back wouldn't mend it: a
        newer snapshot does. Called between two reads, whoever applies."""
        assert self.assembler is not None, "start first"
        self._found(self.assembler.diverge(step))
        self._whole = True

    def mend(self, now_ms: int) -> Loaded | None:
        """For a gap, looked for about each second: a newer snapshot to load; None while there is none."""
        if self.gap is None or self.assembler is None or now_ms - self._tried_ms < _RETRY_MS:
            return None
        self._tried_ms = now_ms
        line, epoch, step = self.assembler.line, self.assembler.epoch, self.assembler.step
        newest = self._newest(line)
        if newest > (epoch, step) and newest != self._useless:
            loaded = self._load(line)
            if (loaded.epoch, loaded.step) > (epoch, step):
                self._go_on_after(loaded)
                return loaded
            self._useless = newest  # damaged, and what is older says nothing new: never go back
        if not self._whole:  # what is missing may stand further back than was looked for it
            self.offset, self._whole, self.gap = self._log.begin(DELTAS, 0), True, None
            self.assembler = DeltaAssembler(line, epoch, step)
        return None

    def _newest(self, line: str) -> tuple[int, int]:
        """The newest complete snapshot of the line, of the epoch asked for; its digests are not checked."""
        if self._epoch is not None:
            steps = snapshots.complete_steps(self._folder, line, self._epoch)
            return (self._epoch, steps[-1]) if steps else (-1, -1)
        found = snapshots.latest(self._folder, line).snapshot
        return (found.epoch, found.step) if found else (-1, -1)

    def _found(self, gap: Gap) -> None:
        if self.gap is None:
            self.gaps += 1
            logging.getLogger(__name__).warning(
                "gap in the deltas",
                extra={"reason": gap.reason, "expected": gap.expected} | self._place(),
            )
        self.gap = gap

    def _place(self) -> dict[str, str | int]:
        its = self.assembler
        return {} if its is None else {"line": its.line, "epoch": its.epoch, "step": its.step}

    def _first_after(self, loaded: Loaded) -> int:
        """Where to read on: the first delta after the snapshot, found by halving, less a margin."""
        begin, end = self._log.begin(DELTAS, 0), self._log.end(DELTAS, 0)
        low, high = begin, end
        while low < high:
            middle = (low + high) // 2
            version = self._version_at(loaded.line, self._log.read(DELTAS, 0, middle, _AHEAD))
            # Of a young line there is nothing for a long way, and what there is comes late.
            missing = version is None and loaded.line == MAIN
            if missing or (version is not None and version > (loaded.epoch, loaded.step)):
                high = middle
            else:
                low = middle + 1
        return max(begin, low - _MARGIN)

    def _version_at(
        self, line: str, records: Sequence[tuple[int, bytes, bytes]]
    ) -> tuple[int, int] | None:
        """The version of the first record of the line; None where there is none."""
        for _, _, value in records:
            try:
                head = msgspec.msgpack.decode(value, type=_Head)
            except msgspec.MsgspecError:
                continue
            if head.line == line:
                return head.epoch, head.step
        return None
