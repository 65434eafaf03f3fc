"""Write-ahead file: one record a step, written before the step is answered, replayed after a crash.

A record is [length u32][CRC-32 u32][step u64][payload]; the CRC covers step and payload. Opening cuts the
file at the first torn or corrupt record or gap in the steps; ``cut_bytes`` counts the bytes. A crash of the
process loses nothing; with ``sync`` (fsync at each append) neither does a power cut.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_MAGIC: Final = b"recsys-wal-2\n\0\0\0"
_HEAD: Final = struct.Struct("<IIQ")
_TEXTS: Final = struct.Struct("<QQ")  # lengths of owner and settings, which follow


class WalMismatch(ValueError):
    """The file belongs to another shard, line or epoch, or isn't a write-ahead file."""


class Wal:
    """Append-only file of steps of one ``owner`` (text). Not thread-safe.

    ``settings``: text on the meaning of the records (see ``wal_settings``). An existing file keeps the
    settings that it was written with until it is cleared.
    """

    def __init__(self, path: Path, owner: str, sync: bool = False, settings: str = "") -> None:
        self.path = path
        self.settings = self._own_settings = settings
        self.cut_bytes = 0
        self._sync, self._owner = sync, owner
        self._head = _head(owner, settings)
        self._offsets: list[tuple[int, int]] = []  # (step, offset of its record), ascending
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _put(path, self._head)
            sync_folder(path.parent)
        self._file = path.open("r+b", buffering=0)
        self._end = self._open()
        if sync:
            # The process before may have died between writing and syncing.
            os.fdatasync(self._file.fileno())
            sync_folder(path.parent)

    @property
    def steps(self) -> tuple[int, int] | None:
        """First and last step in the file; None if empty."""
        return (self._offsets[0][0], self._offsets[-1][0]) if self._offsets else None

    @property
    def nbytes(self) -> int:
        return self._end

    def append(self, step: int, payload: bytes) -> None:
        """Appends the step after the last (any step to an empty file). On return the record survives a crash
        of the process. If writing fails, the record is removed and the error raised."""
        last = self._offsets[-1][0] if self._offsets else step - 1
        assert step == last + 1, (
            f"{self.path} ends with step {last}: step {step} would be cut at the next start"
        )
        crc = zlib.crc32(payload, zlib.crc32(struct.pack("<Q", step)))
        data = memoryview(_HEAD.pack(len(payload), crc, step) + payload)
        self._file.seek(self._end)
        try:
            done = 0
            while done < len(data):
                done += self._file.write(data[done:])
            if self._sync:
                os.fdatasync(self._file.fileno())
        except OSError:
            self._file.truncate(self._end)
            raise
        self._offsets.append((step, self._end))
        self._end += len(data)

    def records(self, after: int = 0) -> Iterator[tuple[int, bytes]]:
        """(step, payload) of each record with a step > ``after``, in order."""
        for step, offset in list(self._offsets):
            if step > after:
                self._file.seek(offset)
                length, _, _ = _HEAD.unpack(self._file.read(_HEAD.size))
                yield step, self._file.read(length)

    def truncate_before(self, step: int) -> None:
        """Drops records of steps < ``step`` by writing a new file and renaming it."""
        offsets = [(s, offset) for s, offset in self._offsets if s >= step]
        if len(offsets) == len(self._offsets):
            return
        start = offsets[0][1] if offsets else self._end
        self._file.seek(start)
        data, shift = self._file.read(self._end - start), start - len(self._head)
        self._renew(self._head + data, [(s, offset - shift) for s, offset in offsets])

    def clear(self) -> None:
        """Drops all records and takes on this process's settings."""
        head = _head(self._owner, self._own_settings)
        self._renew(head, [])
        self._head, self.settings = head, self._own_settings

    def close(self) -> None:
        self._file.close()

    def _renew(self, data: bytes, offsets: list[tuple[int, int]]) -> None:
        """Continues in a new file. Syncs the folder last: after the rename, an error of the sync must not
        leave this object writing to the old, unnamed file."""
        _put(self.path, data)
        self._file.close()
        self._file = self.path.open("r+b", buffering=0)
        self._offsets, self._end = offsets, len(data)
        sync_folder(self.path.parent)

    def _read_head(self) -> None:
        """Checks the owner and reads the settings that the file was written with."""
        begin, owner = self._file.read(len(_MAGIC) + _TEXTS.size), b""
        if begin.startswith(_MAGIC) and len(begin) == len(_MAGIC) + _TEXTS.size:
            owner_size, settings_size = _TEXTS.unpack(begin[len(_MAGIC) :])
            owner = self._file.read(owner_size)
            self.settings = self._file.read(settings_size).decode(errors="replace")
        if owner != self._owner.encode():
            raise WalMismatch(
                f"{self.path} begins with {(begin + owner)[:80]!r}, expected {_MAGIC!r} and {self._owner!r}: "
                "it belongs to another shard, or to another version of this program; move it away to start "
                "from the snapshot"
            )
        self._head = _head(self._owner, self.settings)

    def _open(self) -> int:
        """Scans the file, collects record offsets and cuts a bad tail; returns the end."""
        self._read_head()
        end, size = len(self._head), os.fstat(self._file.fileno()).st_size
        while end + _HEAD.size <= size:
            length, crc, step = _HEAD.unpack(self._file.read(_HEAD.size))
            if end + _HEAD.size + length > size:
                break
            body = struct.pack("<Q", step) + self._file.read(length)
            follows = not self._offsets or step == self._offsets[-1][0] + 1
            if zlib.crc32(body) != crc or not follows:
                break
            self._offsets.append((step, end))
            end += _HEAD.size + length
        if end < size:
            self.cut_bytes = size - end
            self._file.truncate(end)
        return end


def _head(owner: str, settings: str) -> bytes:
    texts = owner.encode(), settings.encode()
    return _MAGIC + _TEXTS.pack(*map(len, texts)) + b"".join(texts)


def _put(path: Path, data: bytes) -> None:
    """Writes a file atomically. It survives a power cut once its folder is synced too."""
    beside = path.with_suffix(f".{os.getpid()}.new")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def sync_folder(folder: Path) -> None:
    """Syncs a folder, so that renames in it survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
