"""Measures the state folder and its disk, and writes the space level for all parts."""

import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from recsys.clock import machine_ms
from recsys.config.safety_config import DiskConfig
from recsys.process.disk_budget import DiskBudget, Level, Space
from recsys.process.slot_file import SlotFile
from recsys.process.space_file import FILE

_TURN_S: Final = 1.0
_MEASURE_S: Final = 10.0
_LOG = logging.getLogger(__name__)


class SpaceWatch:
    """Call ``turn`` often: it acts once a second. ``free_of``: bytes that a folder's disk has free."""

    def __init__(
        self,
        state: str | Path,
        config: DiskConfig,
        now_ms: Callable[[], int] = machine_ms,
        free_of: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
    ) -> None:
        self._state, self._now_ms, self._free_of = Path(state), now_ms, free_of
        self._budget = DiskBudget(config)
        self._file = SlotFile(self._state / "run" / FILE)
        self._kinds: dict[str, int] = {}
        self._turn_s = self._measure_s = 0.0
        self.space = Space()

    def turn(self) -> None:
        """Measures and writes what is due. Raises OSError."""
        now_s = time.monotonic()
        if now_s < self._turn_s:
            return
        self._turn_s = now_s + _TURN_S
        if now_s >= self._measure_s:
            self._kinds = bytes_by_kind(self._state)
            self._measure_s = time.monotonic() + _MEASURE_S
        self.update()

    def update(self) -> None:
        """Plans by the newest measurement, and writes the file."""
        before = self.space.level
        self.space = self._budget.plan(self._kinds, self._free_of(self._state), self._now_ms())
        if self.space.level != before:
            level, why = self.space.level, self.space.why or "there is room again"
            log = _LOG.info if level is Level.OK else _LOG.warning
            log("disk space: %s", level.name.lower(), extra={"why": why})
        self._file.write(msgspec.json.encode(self.space))


def bytes_by_kind(state: Path) -> dict[str, int]:
    """Bytes that the files of a state folder take on the disk, hard links once, by folder in it; of a log's
    topics each ("log/events"). Files that go meanwhile are left out."""
    kinds, seen = Counter[str](), set[tuple[int, int]]()
    for folder, _, names in os.walk(state):
        (kind, *_) = (*Path(folder).relative_to(state).parts, "other")
        for name in names:
            with suppress(OSError):
                status = os.lstat(os.path.join(folder, name))
                place = (status.st_dev, status.st_ino)
                if status.st_nlink == 1 or place not in seen:
                    topic = "/" + name.partition(".")[0] if kind == "log" else ""
                    kinds[kind + topic] += status.st_blocks * 512
                if status.st_nlink > 1:
                    seen.add(place)
    return dict(kinds)
