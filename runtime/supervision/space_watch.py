"""Measures the state folder and its disk, and writes the space level for all parts."""

import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from recsys.clock import wall_ms
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
        now_ms: Callable[[], int] = wall_ms,
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
    topics each ("log/events")."""
    kinds, seen = Counter[str](), set[tuple[int, int]]()
    for entry, folders in _files(state):
        try:
            status = entry.stat(follow_symlinks=False)
        except OSError:
            continue  # removed meanwhile
        place = (status.st_dev, status.st_ino)
        if place in seen:
            continue
        if status.st_nlink > 1:
            seen.add(place)
        kind = folders[0] if folders else "other"
        if kind == "log":
            kind += "/" + entry.name.partition(".")[0]
        kinds[kind] += status.st_blocks * 512
    return dict(kinds)


def _files(
    folder: Path | str, above: tuple[str, ...] = ()
) -> Iterator[tuple["os.DirEntry[str]", tuple[str, ...]]]:
    """The files below a folder, with the names of the folders that they are in."""
    try:
        with os.scandir(folder) as entries:
            listed = list(entries)
    except OSError:
        return  # removed meanwhile
    for entry in listed:
        if entry.is_dir(follow_symlinks=False):
            yield from _files(entry.path, (*above, entry.name))
        else:
            yield entry, above
