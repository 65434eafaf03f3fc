"""Archive part: archives topics within the disk budget, writes dead letters for unreadable records, and
deletes users on request."""

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Final

from recsys.config.system_config import Config
from recsys.events.records import EVENTS
from recsys.process.clock_file import clock_of
from recsys.process.disk_budget import Level
from recsys.process.fold import PartFold, follow
from recsys.process.open_log import open_log
from recsys.process.part_process import Heartbeat, Stop
from recsys.process.part_snapshot import PartState
from recsys.process.space_file import SpaceReader
from recsys.process.worker_share import WHOLE, Share, leased
from training.archive.files import drop_oldest
from training.archive.inspector import Inspector
from training.archive.writer import PART, TOPICS, Archive
from training.deletion.erasure import PART as ERASURES
from training.deletion.erasure import Eraser

_LOG: Final = logging.getLogger(__name__)
_RETAIN_EVERY_S: Final = 15.0
_PAUSE_S: Final = 0.5  # without records


class BudgetedArchive:
    """Archives while there is disk space, and removes the oldest hours."""

    def __init__(self, archive: Archive, folder: Path, space: SpaceReader, share: Share = WHOLE) -> None:
        self._archive, self._folder, self._space, self._share = archive, folder, space, share
        self._due_s = 0.0
        self.dropped = 0  # files

    @property
    def paused(self) -> bool:
        return self._space.level > Level.OK

    def turn(self) -> int:
        """A turn of the archive, if there is space; returns the number of records."""
        self._retain()
        if not self.paused:
            return self._archive.turn()
        self._archive.pause(release=self._space.level >= Level.LOWER)
        return 0

    def _retain(self) -> None:
        if time.monotonic() >= self._due_s:
            self._due_s = time.monotonic() + _RETAIN_EVERY_S
            space = self._space.read()  # None: unknown, nothing is removed
            dropped = drop_oldest(self._folder, space.archive, self._share) if space else 0
            self.dropped += dropped
            if dropped:
                _LOG.info("removed %d of the oldest files", dropped)


class ArchivePart(PartFold):
    """Archives, inspects (the first worker) and erases, each of which restores itself."""

    def __init__(
        self, archive: Archive, budgeted: BudgetedArchive, inspector: Inspector | None, eraser: Eraser
    ) -> None:
        self._archive, self._budgeted = archive, budgeted
        self._inspector, self._eraser = inspector, eraser
        self._reported = 0

    def _turn(self) -> int:
        moved = self._budgeted.turn() + (self._inspector.turn() if self._inspector else 0)
        self._eraser.turn()
        return moved

    def _restore(self) -> None:
        """Nothing: its members do."""

    def report(self, beat: Heartbeat, moved: int) -> None:
        archive, inspector = self._archive, self._inspector
        beat.add("records", archive.written - self._reported)
        self._reported = archive.written
        beat.gauge("files", archive.files)
        beat.gauge("files_dropped", self._budgeted.dropped)
        beat.gauge("paused", float(self._budgeted.paused))
        beat.gauge("missed", archive.missed)
        if inspector:
            beat.gauge("unreadable", inspector.unreadable)
            beat.gauge("set_aside", inspector.set_aside)
        beat.gauge("to_forget", self._eraser.waiting)
        beat.gauge("forgotten", self._eraser.done)
        for topic in TOPICS:
            beat.offsets(topic, archive.offsets(topic))

    def wait(self) -> None:
        time.sleep(_PAUSE_S)


@contextmanager
def opened(config: Config, share: Share = WHOLE) -> Iterator[ArchivePart]:
    """The part's fold, which writes the buffered records at the end. The first worker has the topics of one
    partition."""
    with closing(open_log(config)) as log, ExitStack() as locks:
        locks.enter_context(leased(config.state, PART, share.partitions(log.partitions(EVENTS))))
        folder, space = Path(config.state) / "archive", SpaceReader(config.state)
        clock = clock_of(config)
        archive = Archive(log, folder, clock, share)
        budgeted = BudgetedArchive(archive, folder, space, share)
        inspector = Inspector(log, PartState(config.state, PART), clock) if share.first else None
        eraser = Eraser(log, folder, PartState(config.state, ERASURES), clock, share)
        yield ArchivePart(archive, budgeted, inspector, eraser)
        archive.flush()
        if inspector:
            inspector.save()


def run(config: Config, stop: Stop, share: Share = WHOLE) -> None:
    """Archives, inspects and erases until asked to stop."""
    with opened(config, share) as part:
        follow(part, stop, _LOG)
