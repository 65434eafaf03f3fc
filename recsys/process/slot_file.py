"""A small file rewritten in place, so that its writer needs no disk space and opens no file.

    #NUMBER LENGTH CRC DATA, padded with spaces, in each of two slots of equal size

The CRC-32 covers number and data. Writes go to the slots in turn, and a reader takes the newest intact one.
Data that outgrow their slot make a new, larger file.
"""

import contextlib
import os
import re
import threading
import zlib
from pathlib import Path
from typing import Final

_HEAD: Final = re.compile(rb"#(\d{10}) (\d{8}) ([0-9a-f]{8}) ")
_PAGE: Final = 4096
_READS: Final = 5  # a writer that is faster than a read can tear both slots


class SlotFile:
    """Writer of a slot file, the only one at a time. Not thread-safe."""

    def __init__(self, path: Path) -> None:
        self._path, self._descriptor, self._room, self._number = path, -1, 0, 0

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def write(self, data: bytes, sync: bool = False) -> None:
        """Replaces the content. Raises OSError, and then keeps the old content. Without ``sync`` a power cut
        may take it."""
        if self._descriptor < 0:
            self._open()
        number = self._number + 1
        slot = b"#%010d %08d %08x %s" % (number, len(data), zlib.crc32(data, number), data)
        if len(slot) > self._room or not os.fstat(self._descriptor).st_nlink:
            self._create(slot, number)
        else:
            _write_at(self._descriptor, slot.ljust(self._room), number % 2 * self._room)
        self._number = number
        if sync:
            os.fsync(self._descriptor)

    def _open(self) -> None:
        """Opens the file of an earlier writer, which has its disk space already."""
        with contextlib.suppress(OSError):
            if slots := slots_of(self._path.read_bytes()):
                descriptor = os.open(self._path, os.O_WRONLY)
                self._descriptor, self._number = descriptor, max(slots)[0]
                self._room = os.fstat(descriptor).st_size // 2

    def _create(self, slot: bytes, number: int) -> None:
        room = -(-2 * len(slot) // _PAGE) * _PAGE
        partial = self._path.with_name(f".{self._path.name}.{os.getpid()}.{threading.get_ident()}")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            _write_at(descriptor, b" " * 2 * room, 0)
            _write_at(descriptor, slot, number % 2 * room)
            os.replace(partial, self._path)
        except OSError:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                os.unlink(partial)
            raise
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._room = descriptor, room


def read_slots(path: Path) -> bytes:
    """Newest intact content of a slot file; the whole content of any other file. Raises OSError."""
    for _ in range(_READS):
        data = path.read_bytes()
        if slots := slots_of(data):
            return max(slots)[1]
    return data


def slots_of(data: bytes) -> list[tuple[int, bytes]]:
    """Numbers and contents of the intact slots."""
    slots = []
    for begin in (0, len(data) // 2):
        if head := _HEAD.match(data, begin):
            content = data[head.end() : head.end() + int(head[2])]
            number = int(head[1])
            if zlib.crc32(content, number) == int(head[3], 16):
                slots.append((number, content))
    return slots


def _write_at(descriptor: int, data: bytes, at: int) -> None:
    while data:
        count = os.pwrite(descriptor, data, at)
        data, at = data[count:], at + count
