"""The write-ahead file: one record a step, written before the step is answered, read back after a crash.

A record is [length u32][CRC-32 u32][step u64][payload]; the CRC covers step and payload. A tail that a
crash tore is cut at opening, and so is what follows a record that doesn't check (after a hole it can't
be applied); ``cut_bytes`` says how much. A crash of the process loses nothing; ``sync`` asks the disk at
each append, so that a power cut doesn't either.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_MAGIC: Final = b"recsys-wal-2\n\0\0\0"
_HEAD: Final = struct.Struct("<IIQ")
_TEXTS: Final = struct.Struct("<QQ")  # the lengths of owner and rules, which follow


class WalMismatch(ValueError):
    """The file belongs to another shard, line or epoch, or isn't a write-ahead file."""


class Wal:
    """An append-only file of steps, for one owner (text that says whose it is). Not thread-safe.

    ``rules``, text, say what its records mean. A file that was written by others keeps them (``rules`` says
    them) until it is cleared.
    """

    def __init__(self, path: Path, owner: str, sync: bool = False, rules: str = "") -> None:
        self.path = path
        self.rules = self._own_rules = rules
        self.cut_bytes = 0
        self._sync, self._owner = sync, owner
        self._head = _head(owner, rules)
        self._offsets: list[tuple[int, int]] = []  # (step, where its record begins), ascending
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _put(path, self._head)
            sync_folder(path.parent)
        self._file = path.open("r+b", buffering=0)
        self._end = self._open()
        if sync:
            # A process may have died between writing and syncing: what is found is answered for from now on.
            os.fdatasync(self._file.fileno())
            sync_folder(path.parent)

    @property
    def steps(self) -> tuple[int, int] | None:
        """The first and the last step in the file; None where it is empty."""
        return (self._offsets[0][0], self._offsets[-1][0]) if self._offsets else None

    @property
    def nbytes(self) -> int:
        return self._end

    def append(self, step: int, payload: bytes) -> None:
        """Writes one step, the one after the last (any, where the file is empty). When it returns, the record
        outlives the process (``sync``: a power cut too).

        Where writing fails (a full disk), nothing of the record stays, and the error goes on.
        """
        last = self._offsets[-1][0] if self._offsets else step - 1
        assert step == last + 1, (
            f"{self.path} ends with step {last}: {step} would be cut off at the next start"
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
        """(step, payload) of every record with a step > ``after``, in order."""
        for step, offset in list(self._offsets):
            if step > after:
                self._file.seek(offset)
                length, _, _ = _HEAD.unpack(self._file.read(_HEAD.size))
                yield step, self._file.read(length)

    def truncate_before(self, step: int) -> None:
        """Drops the records of steps < ``step``, by writing a new file beside and renaming it."""
        kept = [(s, offset) for s, offset in self._offsets if s >= step]
        if len(kept) == len(self._offsets):
            return
        start = kept[0][1] if kept else self._end
        self._file.seek(start)
        shift = start - len(self._head)
        self._renew(
            self._head + self._file.read(self._end - start),
            [(s, offset - shift) for s, offset in kept],
        )

    def clear(self) -> None:
        """Drops every record: the state goes back to a snapshot. From now on the rules are one's own."""
        head = _head(self._owner, self._own_rules)
        self._renew(head, [])
        self._head, self.rules = head, self._own_rules

    def close(self) -> None:
        self._file.close()

    def _renew(self, data: bytes, offsets: list[tuple[int, int]]) -> None:
        """Goes on in a new file. The folder is synced last: once the name is the new file's, an error of that
        must not leave this writing into the old one, which nobody finds again."""
        _put(self.path, data)
        self._file.close()
        self._file = self.path.open("r+b", buffering=0)
        self._offsets, self._end = offsets, len(data)
        sync_folder(self.path.parent)

    def _read_head(self) -> None:
        """Whose it is, and by which rules it was written."""
        begin, owner = self._file.read(len(_MAGIC) + _TEXTS.size), b""
        if begin.startswith(_MAGIC) and len(begin) == len(_MAGIC) + _TEXTS.size:
            whose, rules = _TEXTS.unpack(begin[len(_MAGIC) :])
            owner = self._file.read(whose)
            self.rules = self._file.read(rules).decode(errors="replace")
        if owner != self._owner.encode():
            raise WalMismatch(
                f"{self.path} begins with {(begin + owner)[:80]!r}, expected {_MAGIC!r} and {self._owner!r}: "
                "it belongs to another shard, or to another version of this program; move it away to start "
                "from the snapshot"
            )
        self._head = _head(self._owner, self.rules)

    def _open(self) -> int:
        """Reads the file through once, notes where records begin and cuts what doesn't check."""
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


def _head(owner: str, rules: str) -> bytes:
    texts = owner.encode(), rules.encode()
    return _MAGIC + _TEXTS.pack(*map(len, texts)) + b"".join(texts)


def _put(path: Path, data: bytes) -> None:
    """Writes a file so that it is there whole or not at all; whether it outlives a power cut is its folder's
    matter."""
    beside = path.with_suffix(f".{os.getpid()}.new")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder outlive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
