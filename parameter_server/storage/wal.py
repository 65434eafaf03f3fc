"""Write-ahead file: one record a step, written before the step is answered, replayed after a crash.

A record is [length u32][CRC-32 u32][step u64][payload]; the CRC covers all else of it. Opening cuts the file
at the first torn or corrupt record or gap in the steps; ``cut_bytes`` counts the bytes. If whole records
follow, the file isn't torn but ``damaged``: it is copied aside first. The line learns the missing steps
again, with the same result. A crash of the process loses nothing; with ``sync`` (fsync at each append)
neither does a power cut.
"""

import os
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

_MAGIC: Final = b"recsys-wal-3\n\0\0\0"
_HEAD: Final = struct.Struct("<IIQ")
_TEXTS: Final = struct.Struct("<QQ")  # lengths of owner and settings, which follow
_U32: Final = struct.Struct("<I")  # the CRC of the head, after it
_STEP: Final = struct.Struct("<Q")
_STEP_AT: Final = _HEAD.size - _STEP.size
_MAYBE_RECORD: Final = re.compile(rb"(?=.{13}\0{3})", re.DOTALL)  # the step's high bytes are zero


class WalMismatch(ValueError):
    """The file belongs to another shard, line or epoch, or isn't a write-ahead file."""


class Scan(NamedTuple):
    """Records of a file. ``offsets``: (step, offset of its record), ascending; ``end``: after the last whole
    record; ``damaged``: whole records follow later, so that this isn't a torn tail."""

    owner: str
    settings: str
    offsets: list[tuple[int, int]]
    end: int
    damaged: bool


class Wal:
    """Append-only file of steps of one ``owner`` (text). Not thread-safe.

    ``settings``: text on the meaning of the records (see ``wal_settings``). An existing file keeps the
    settings that it was written with until it is cleared.
    """

    def __init__(self, path: Path, owner: str, sync: bool = False, settings: str = "") -> None:
        self.path = path
        self.settings = self._own_settings = settings
        self.cut_bytes = 0
        self.damaged = ""  # the file's damage when it was opened, and where its copy is
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
        head = _record_head(step, payload)
        self._file.seek(self._end)
        try:
            for data in (head, payload):  # in two writes: joining them would copy the step
                done, view = 0, memoryview(data)
                while done < len(view):
                    done += self._file.write(view[done:])
            if self._sync:
                os.fdatasync(self._file.fileno())
        except OSError:
            self._file.truncate(self._end)
            raise
        self._offsets.append((step, self._end))
        self._end += len(head) + len(payload)

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

    def _open(self) -> int:
        """Scans the file, collects record offsets and cuts a bad tail; returns the end."""
        data = self._file.read()
        try:
            scanned = scan(data)
        except ValueError as error:
            raise WalMismatch(f"{self.path} {error}; move it away to start from the snapshot") from None
        if scanned.owner != self._owner:
            raise WalMismatch(
                f"{self.path} is of {scanned.owner!r}, expected {self._owner!r}: it belongs to another "
                "shard; move it away to start from the snapshot"
            )
        self.settings, self._offsets = scanned.settings, scanned.offsets
        self._head = _head(self._owner, self.settings)
        self.cut_bytes = len(data) - scanned.end
        if scanned.damaged:
            copy = self.path.with_suffix(".wal.damaged")
            _put(copy, data)
            last = scanned.offsets[-1][0] if scanned.offsets else "none"
            self.damaged = f"{self.path} is damaged after step {last}; its copy is {copy}"
        if self.cut_bytes:
            self._file.truncate(scanned.end)
        return scanned.end


def scan(data: bytes) -> Scan:
    """Reads the contents of a file. Raises ValueError if its head is damaged or of another program."""
    texts = len(_MAGIC) + _TEXTS.size
    if not data.startswith(_MAGIC) or len(data) < texts:
        raise ValueError(
            f"begins with {data[:80]!r}, expected {_MAGIC!r}: it is damaged, or of another version"
        )
    owner_size, settings_size = _TEXTS.unpack_from(data, len(_MAGIC))
    middle = texts + owner_size
    end = middle + settings_size
    if data[end : end + _U32.size] != _U32.pack(zlib.crc32(data[:end])):
        raise ValueError(f"begins with {data[:80]!r}: its head is damaged")
    end += _U32.size
    owner = data[texts:middle].decode(errors="replace")
    settings = data[middle : middle + settings_size].decode(errors="replace")
    offsets: list[tuple[int, int]] = []
    while (record := _whole(data, end)) is not None:
        step, after = record
        if offsets and step != offsets[-1][0] + 1:
            break
        offsets.append((step, end))
        end = after
    damaged = _is_followed(data, end, offsets[-1][0] + 1 if offsets else None)
    return Scan(owner, settings, offsets, end, damaged)


def _is_followed(data: bytes, end: int, step: int | None) -> bool:
    """Whether a whole record follows the torn or corrupt one at ``end``: right after it, or, where its length
    is wrong, anywhere. ``step``: of the record at ``end``; None: as the record says.

    Only records of plausible steps are checked: each zero of a gradient may look like one of many megabytes.
    """
    if end + _HEAD.size > len(data):
        return False
    length, _, written = _HEAD.unpack_from(data, end)
    if _whole(data, end + _HEAD.size + length):
        return True
    first = written if step is None else step
    steps = range(first, first + (len(data) - end) // _HEAD.size + 1)
    starts = (match.start() for match in _MAYBE_RECORD.finditer(data, end + 1))
    return any(
        _STEP.unpack_from(data, start + _STEP_AT)[0] in steps and _whole(data, start) for start in starts
    )


def _whole(data: bytes, offset: int) -> tuple[int, int] | None:
    """(step, end) of the record at an offset; None if it is torn or corrupt."""
    if offset + _HEAD.size > len(data):
        return None
    length, crc, step = _HEAD.unpack_from(data, offset)
    start = offset + _HEAD.size
    if start + length > len(data):
        return None
    body = memoryview(data)[start : start + length]
    return (step, start + length) if _crc(step, body) == crc else None


def _record_head(step: int, payload: bytes) -> bytes:
    return _HEAD.pack(len(payload), _crc(step, payload), step)


def _crc(step: int, payload: bytes | memoryview) -> int:
    return zlib.crc32(payload, zlib.crc32(_U32.pack(len(payload)) + _STEP.pack(step)))


def _head(owner: str, settings: str) -> bytes:
    texts = owner.encode(), settings.encode()
    head = _MAGIC + _TEXTS.pack(*map(len, texts)) + b"".join(texts)
    return head + _U32.pack(zlib.crc32(head))


def _put(path: Path, data: bytes) -> None:
    """Writes a file atomically. It survives a power cut once its folder is synced too."""
    beside = path.with_suffix(f".{os.getpid()}.new")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:  # a full disk: the next process would leave another half
        beside.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Syncs a folder, so that renames in it survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
