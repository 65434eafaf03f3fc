"""What can go wrong, as an input: a disk, a log and a wire that fail wherever a seed says so.

Every write, sync and rename under the folder, every append and read of the log, and every answer on its way
is a *point*. At a point the process may die (before, in the middle or after), the machine may lose its power,
or the call may fail and the process live on. Nothing here knows what it disturbs.

Some faults come only where a run asks for them (``EXTRA``): a disk that stays full for a while, a clock that
jumps, a log like Kafka's, and processes that die in pairs.
"""

import errno
import os
import pathlib
import random
import re
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final
from unittest import mock

from parameter_server.storage import snapshots
from recsys.events.hashing import key_of
from recsys.events.records import DELTAS, EVENTS
from recsys.log.protocol import (
    Append,
    LogUnavailable,
    LogUnchangeable,
    MemoryLog,
    Record,
    Topic,
    check_appends,
    check_range,
)

EXTRA: Final = ("full disk", "clock", "kafka", "pairs")
FULL: Final = (5, 60)  # writes that a full disk refuses before there is room again
WIRE: Final = 2  # times as many faults on the way to a replica as elsewhere
POWER: Final = 0.25  # of the crashes, where the line is to outlive power cuts


class Crash(BaseException):
    """The process that is at work is gone; ``power``: so are all others, and what wasn't synced."""

    def __init__(self, where: str, power: bool) -> None:
        super().__init__(where)
        self.power = power


class Chance:
    """The draws of one seed. ``rate`` is the share of points at which something happens; 0: none."""

    def __init__(self, seed: int, rate: float, power: bool) -> None:
        self.random = random.Random(seed)
        self.rate, self.power = rate, power
        self.struck: dict[str, int] = {}
        self.kills = 0

    def strikes(self, share: float = 1.0) -> bool:
        return self.rate > 0 and self.random.random() < self.rate * share

    def crash(self, where: str) -> Crash:
        power = self.power and self.random.random() < POWER
        self.count("power" if power else where)
        self.kills += 1
        return Crash(where, power)

    def count(self, what: str) -> None:
        self.struck[what] = self.struck.get(what, 0) + 1

    def point(self, where: str) -> None:
        """The process may die here."""
        if self.strikes():
            raise self.crash(where)


class FaultyLog(MemoryLog):
    """A log whose appends may break off: of each partition's records the first few are committed."""

    def __init__(self, chance: Chance) -> None:
        super().__init__()
        self._chance = chance

    def append(self, topic: str, records: Sequence[Append]) -> list[int]:
        chance = self._chance
        if topic == EVENTS or not chance.strikes():
            return super().append(topic, records)
        partitions = {record.partition for record in records}
        through = {p: chance.random.randint(0, len(records)) for p in partitions}
        kept = []
        for record in records:
            if through[record.partition] > 0:
                through[record.partition] -= 1
                kept.append(record)
        super().append(topic, kept)
        if chance.random.random() < 0.5:
            raise chance.crash("append")
        chance.count("append failed")
        raise LogUnavailable(f"{topic} is away")

    def read(self, topic: str, partition: int, offset: int, limit: int = 1000) -> list[Record]:
        if self._chance.strikes(0.1):
            self._chance.count("read failed")
            raise LogUnavailable(f"{topic} is away")
        return super().read(topic, partition, offset, limit)

    def read_surely(self, topic: str, offset: int) -> list[Record]:
        """All records of a topic's first partition from an offset on; never fails."""
        return super().read(topic, 0, offset, 100_000)


class KafkaLog(MemoryLog):
    """A log in memory that behaves like Kafka's: offsets have holes, as behind a transaction, holds
    keep nothing, records can't be changed, and only the broker drops them (``expire``). The holes depend on
    the position alone: the same records get the same offsets in another log of this kind."""

    def __init__(self) -> None:
        super().__init__()
        self._ends: dict[tuple[str, int], int] = {}

    def append(self, topic: str, records: Sequence[Append]) -> list[int]:
        check_appends(topic, self.partitions(topic), records)
        offsets = []
        for partition, key, value in records:
            offset = self.end(topic, partition)
            self._records(topic, partition).append(Record(offset, key, value))
            hole = max(0, key_of("hole", f"{topic}/{partition}/{offset}") % 5 - 2)
            self._ends[topic, partition] = offset + 1 + hole
            offsets.append(offset)
        return offsets

    def read(self, topic: str, partition: int, offset: int, limit: int = 1000) -> list[Record]:
        check_range(topic, partition, offset, self.begin(topic, partition), self.end(topic, partition))
        records = self._records(topic, partition)
        at = bisect_left(records, offset, key=lambda record: record.offset)
        return records[at : at + limit]

    def end(self, topic: str, partition: int) -> int:
        self._records(topic, partition)
        return self._ends.get((topic, partition), 0)

    def expire(self, topic: str, partition: int, before: int) -> None:
        """What the broker's retention does, whoever still needs the records."""
        records = self._records(topic, partition)
        records[:] = [record for record in records if record.offset >= before]
        self._begin[topic, partition] = before

    def trim(self, topic: str, partition: int, before: int) -> None:
        """Only the broker drops records."""

    def hold(self, name: str, topic: str, partition: int, offset: int) -> None:
        check_range(topic, partition, offset, self.begin(topic, partition), self.end(topic, partition))

    def replace(self, topic: str, partition: int, records: Sequence[Record]) -> int:
        raise LogUnchangeable(f"{topic}: records can't be changed")


class FaultyKafka(FaultyLog, KafkaLog):
    """A poll gives as many records as the broker likes."""

    def read(self, topic: str, partition: int, offset: int, limit: int = 1000) -> list[Record]:
        return super().read(topic, partition, offset, min(limit, self._chance.random.randint(1, 40)))


class Wire:
    """The deltas on their way to a replica: dropped, repeated, reordered, cut."""

    def __init__(self, log: FaultyLog, chance: Chance) -> None:
        self._log, self._chance, self._offset = log, chance, 0
        self._held: list[Record] = []
        self.arrived = MemoryLog()
        self.arrived.create(Topic(DELTAS))

    def carry(self) -> None:
        """Brings what was published since."""
        for record in self._log.read_surely(DELTAS, self._offset):
            self._offset = record.offset + 1
            self._send(record)
        if not self._chance.rate:
            self._release()

    def _send(self, record: Record) -> None:
        chance = self._chance
        if not chance.strikes(WIRE):
            self._deliver(record.value)
            if chance.random.random() < 0.5:
                self._release()
            return
        what = chance.random.choice(("dropped", "repeated", "reordered", "cut", "flipped"))
        chance.count(what)
        value = record.value
        if what == "repeated":
            self._deliver(value)
            self._held.append(record)
        elif what == "reordered":
            self._held.append(record)
        elif what == "cut":
            self._deliver(value[: chance.random.randrange(len(value))])
        elif what == "flipped":
            at = chance.random.randrange(len(value))
            self._deliver(value[:at] + bytes([value[at] ^ 1 << at % 8]) + value[at + 1 :])

    def _deliver(self, value: bytes) -> None:
        self.arrived.append(DELTAS, [Append(0, b"", value)])

    def _release(self) -> None:
        held, self._held = self._held, []
        self._chance.random.shuffle(held)
        for record in held:
            self._deliver(record.value)


class _File:
    """An open file whose writes are points."""

    def __init__(self, disk: "Disk", inner: Any, where: Path) -> None:
        self._disk, self._inner, self._where = disk, inner, where

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __enter__(self) -> "_File":
        self._inner.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._inner.__exit__(*error)

    def write(self, data: Any) -> int:
        self._disk.wrote(self._inner.fileno(), self._inner.tell())
        return self._disk.in_the_middle("write", self._where, data, self._inner.write)


class Disk:
    """Everything under a folder, with the page cache: what isn't synced may be gone after a power cut.

    Use it as a context: it stands in the place of ``os.fsync``, ``os.fdatasync``, ``os.rename``,
    ``os.replace``, ``os.link``, ``Path.open`` and safetensors' ``save_file``. It doesn't know of folders that
    were made and not synced: those stay.
    """

    def __init__(self, folder: Path, chance: Chance, fills: bool = False) -> None:
        """``fills``: a disk without room stays so for many writes, not one."""
        self.folder, self._chance, self._fills = folder, chance, fills
        self._refused = 0  # writes that still find no room
        self._unsynced: dict[int, int] = {}  # inode -> bytes that are safe
        self._renames: list[tuple[str, str, bytes | None]] = []  # from, to, the file that was there
        self._real = {n: getattr(os, n) for n in ("fsync", "fdatasync", "rename", "replace", "link")}
        self._open, self._save = pathlib.Path.open, snapshots.save_file
        self._patches = ExitStack()

    def __enter__(self) -> "Disk":
        enter = self._patches.enter_context
        disk = self

        def opens(path: Path, mode: str = "r", *args: Any, **named: Any) -> Any:
            return disk._opens(path, mode, *args, **named)

        enter(mock.patch.object(os, "fsync", self._sync))
        enter(mock.patch.object(os, "fdatasync", self._sync))
        enter(mock.patch.object(os, "rename", lambda a, b: self._rename("rename", a, b)))
        enter(mock.patch.object(os, "replace", lambda a, b: self._rename("replace", a, b)))
        enter(mock.patch.object(os, "link", self._link))
        enter(mock.patch.object(pathlib.Path, "open", opens))
        enter(mock.patch.object(snapshots, "save_file", self._saves))
        return self

    def __exit__(self, *error: Any) -> None:
        self._patches.close()

    def wrote(self, descriptor: int, at: int) -> None:
        """From ``at`` on, a file isn't safe until it is synced."""
        node = os.fstat(descriptor).st_ino
        self._unsynced[node] = min(at, self._unsynced.get(node, at))

    def in_the_middle(self, what: str, where: Path, data: Any, write: Any) -> int:
        """A write that may be torn, or fail because the disk is full."""
        chance = self._chance
        self._check_room(where)
        if not chance.strikes():
            return int(write(data))
        some = data[: chance.random.randint(0, len(data))]
        if len(some):
            write(some)
        if chance.random.random() < 0.25:
            chance.count("disk full")
            if self._fills:
                self._refused = chance.random.randint(*FULL)
            raise OSError(errno.ENOSPC, "no space left", str(where))
        raise chance.crash(what)

    def _check_room(self, where: Path) -> None:
        if self._refused and self._chance.rate:
            self._refused -= 1
            self._chance.count("still full")
            raise OSError(errno.ENOSPC, "no space left", str(where))

    def cut_power(self) -> None:
        """Takes back, at random, what was neither synced nor had to be."""
        draw = self._chance.random
        while self._renames and draw.random() < 0.5:
            origin, target, before = self._renames.pop()
            if Path(target).exists() and not Path(origin).exists():
                self._real["rename"](target, origin)
                if before is not None:
                    with open(target, "wb") as file:  # past the points
                        file.write(before)
        self._renames.clear()
        for path in sorted(self.folder.rglob("*"), key=_without_random_names):
            if path.is_file() and path.stat().st_ino in self._unsynced:
                size, safe = path.stat().st_size, self._unsynced[path.stat().st_ino]
                if safe < size:
                    os.truncate(path, draw.randint(safe, size))
        self._unsynced.clear()

    def _inside(self, path: Any) -> bool:
        return str(path).startswith(str(self.folder))

    def _opens(self, path: Path, mode: str, *args: Any, **named: Any) -> Any:
        file = self._open(path, mode, *args, **named)
        if ("r" == mode[0] and "+" not in mode) or not self._inside(path):
            return file
        if mode[0] == "w":
            self._unsynced[os.fstat(file.fileno()).st_ino] = 0
        return _File(self, file, path)

    def _sync(self, descriptor: int) -> None:
        """Doesn't ask the real disk: it is as if it had."""
        self._chance.point("sync")
        status = os.fstat(descriptor)
        self._unsynced.pop(status.st_ino, None)
        keep = []
        for rename in self._renames:
            folder = Path(rename[1]).parent
            if not folder.exists() or folder.stat().st_ino != status.st_ino:
                keep.append(rename)
        self._renames = keep

    def _rename(self, how: str, origin: Any, target: Any) -> None:
        if not self._inside(target):
            self._real[how](origin, target)
            return
        self._chance.point("rename")
        before = Path(target).read_bytes() if Path(target).is_file() else None
        self._real[how](origin, target)
        self._renames.append((str(origin), str(target), before))
        self._chance.point("rename")

    def _link(self, origin: Any, target: Any) -> None:
        self._chance.point("link")
        self._real["link"](origin, target)
        self._chance.point("link")

    def _saves(self, arrays: Any, path: Path) -> None:
        self._chance.point("write")
        self._check_room(path)
        self._save(arrays, path)
        self._unsynced[path.stat().st_ino] = 0
        if self._chance.strikes():
            os.truncate(path, self._chance.random.randint(0, path.stat().st_size))
            raise self._chance.crash("write")


def _without_random_names(path: Path) -> tuple[str, int, Path]:
    """Key to sort files by, in one order of every run: UUIDs and process ids differ."""
    size = path.stat().st_size if path.is_file() else 0
    return re.sub(r"-[0-9a-f]{32}\b|\.\d+\.new$", "", str(path)), size, path
