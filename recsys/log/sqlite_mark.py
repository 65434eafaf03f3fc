"""High-water mark of a topic, beside its SQLite file: the end of each partition, and the number of commits.

SQLite ends its write-ahead file at the first frame with a wrong checksum, so that one flipped bit removes all
later commits without an error. The mark shows that they existed. It is written in place after each commit,
and so wakes readers that wait for one.
"""

import ctypes
import fcntl
import os
import select
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from struct import Struct
from typing import Final, NamedTuple

from crc32c import crc32c

_PAIR: Final = Struct("<qq")  # partition, end
_TAIL: Final = Struct("<16sI")  # boot id, checksum
_IN_MODIFY: Final = 2
POLL_S: Final = 0.005
UNSEEN_S: Final = 0.5  # a disk error may leave a commit without its mark
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class Marked(NamedTuple):
    """Contents of a mark. ``this_boot``: the machine hasn't restarted since."""

    ends: dict[int, int]
    this_boot: bool


class Mark:
    """The mark's file. Safe for several threads and processes."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def __del__(self) -> None:
        os.close(self._file)

    def read(self) -> Marked | None:
        """The mark; None if there is none or the file is damaged."""
        with self._locked(fcntl.LOCK_SH):
            return self._read()

    def advance(self, ends: dict[int, int]) -> None:
        """Moves ends forward, never back. A disk error leaves the mark before."""
        with suppress(OSError), self._locked(fcntl.LOCK_EX):
            marked = self._read()
            before = marked.ends if marked else {}
            self._write(before | {p: max(end, before.get(p, 0)) for p, end in ends.items()})

    def reset(self, ends: dict[int, int]) -> None:
        """Replaces the mark."""
        with self._locked(fcntl.LOCK_EX):
            os.ftruncate(self._file, 0)
            self._write(ends)

    def _write(self, ends: dict[int, int]) -> None:
        data = b"".join(_PAIR.pack(*pair) for pair in ends.items()) + _boot()
        os.pwrite(self._file, data + crc32c(data).to_bytes(4, "little"), 0)

    def _read(self) -> Marked | None:
        data = os.pread(self._file, 1 << 16, 0)
        if len(data) < _TAIL.size:
            return None
        boot, crc = _TAIL.unpack_from(data, len(data) - _TAIL.size)
        if crc32c(data[:-4]) != crc:
            return None
        return Marked(dict(_PAIR.iter_unpack(data[: -_TAIL.size])), boot == _boot())

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        fcntl.flock(self._file, how)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)


class Wakeup:
    """Wakes one thread when a mark is written, by inotify. Where that is missing (not Linux, or the user has
    no instance left), the thread polls."""

    def __init__(self, path: Path) -> None:
        self._file, self._events, libc = -1, select.poll(), ctypes.CDLL(None)
        if hasattr(libc, "inotify_init1"):
            self._file = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._file >= 0 and libc.inotify_add_watch(self._file, bytes(path), _IN_MODIFY) >= 0:
            self._events.register(self._file, select.POLLIN)
            self._longest_s = UNSEEN_S
        else:
            self._longest_s = POLL_S

    def __del__(self) -> None:
        if self._file >= 0:
            os.close(self._file)

    def wait(self, timeout_s: float) -> None:
        """Returns after a write since the last call, or a while."""
        if self._events.poll(1000 * min(timeout_s, self._longest_s)):
            os.read(self._file, 1 << 12)  # equal events are one


@cache
def _boot() -> bytes:
    """Id of the machine's current boot; zeros where the system has none."""
    try:
        return uuid.UUID(_BOOT_ID.read_text().strip()).bytes
    except (OSError, ValueError):
        return bytes(16)
