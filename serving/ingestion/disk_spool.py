"""Spools impressions on disk while the log is away, oldest first, including those of replicas that ended.

Each replica has one file, locked while it lives: a file that can be locked has no owner, and another replica
adopts and sends it. A record is its length, CRC-32 and MessagePack; the header names the log that it is for
and how far it was sent. Nothing is synced: the file survives the process, not a power cut. After a crash at
most one batch is sent twice; readers drop it by the request's id.
"""

import errno
import fcntl
import hashlib
import logging
import os
import struct
import uuid
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from recsys.log.protocol import Append

_MAGIC: Final = b"kept-1\n\0"
_HEAD: Final = struct.Struct("<8s16sQ")  # magic, digest of the log's id, end of what was sent
_RECORD: Final = struct.Struct("<II")  # bytes, CRC-32
_MAX_BYTES: Final = 64 << 20  # of a record: a larger length is damage
_SUFFIX: Final = ".kept"
_LOG: Final = logging.getLogger(__name__)

Waiting = tuple[str, Append]  # topic and record


class _Stored(msgspec.Struct, array_like=True):
    topic: str
    partition: int
    key: bytes
    value: bytes


class SpoolFile:
    """One file, open and locked. ``end``: position of the next record; ``sent``: end of what was sent."""

    def __init__(self, path: Path, fd: int, log: bytes, sent: int) -> None:
        self.path, self._fd, self._log = path, fd, log
        self.end = os.fstat(fd).st_size
        if not _HEAD.size <= sent <= self.end:  # its replica ended between truncation and header
            sent = _HEAD.size
        self.sent = self._peeked = sent
        self.torn = 0

    @classmethod
    def create(cls, folder: Path, log_id: str) -> "SpoolFile":
        """Creates a file. It is named once it is locked, so that none adopts it. Raises OSError if the disk
        has no room for the header."""
        folder.mkdir(parents=True, exist_ok=True)
        name = uuid.uuid4().hex
        unnamed = folder / f"{name}.new"
        fd = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        path = folder / (name + _SUFFIX)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            head = _HEAD.pack(_MAGIC, digest_of(log_id), _HEAD.size)
            _check_written(os.write(fd, head), unnamed)  # else a torn header would be adopted
            os.rename(unnamed, path)
        except OSError:
            os.close(fd)
            unnamed.unlink(missing_ok=True)
            raise
        return cls(path, fd, digest_of(log_id), _HEAD.size)

    @classmethod
    def adopt(cls, path: Path, log_id: str) -> "SpoolFile | None":
        """Opens the file of a replica that ended; None if it lives, or the file is for another log."""
        try:
            fd = os.open(path, os.O_RDWR)
        except OSError:
            return None  # another replica was faster
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            head = os.pread(fd, _HEAD.size, 0)
            if len(head) == _HEAD.size and path.exists():
                magic, log, sent = _HEAD.unpack(head)
                if magic == _MAGIC and log == digest_of(log_id):
                    return cls(path, fd, log, sent)
        os.close(fd)
        return None

    @property
    def pending(self) -> int:
        """Bytes not sent."""
        return self.end - self.sent

    def append(self, waiting: Sequence[Waiting], room: int) -> int:
        """Appends as many records as fit into ``room`` bytes; returns their number, 0 if the disk is full."""
        block, count = bytearray(), 0
        for topic, (partition, key, value) in waiting:
            body = msgspec.msgpack.encode(_Stored(topic, partition, key, value))
            if len(block) + _RECORD.size + len(body) > room:
                break
            block += _RECORD.pack(len(body), zlib.crc32(body)) + body
            count += 1
        try:
            if os.pwrite(self._fd, block, self.end) < len(block):  # the disk is full
                os.ftruncate(self._fd, self.end)
                return 0
        except OSError as error:
            _LOG.warning("impressions can't be spooled", extra={"error": str(error)})
            return 0
        self.end += len(block)
        return count

    def peek(self, most: int) -> list[Waiting]:
        """Oldest unsent records, as far as they are readable: everything after a bad record is given up."""
        waiting: list[Waiting] = []
        at = self.sent
        while at < self.end and len(waiting) < most:
            record = self._read(at)
            if record is None:
                self.torn += 1
                self.end = at
                break
            size, stored = record
            waiting.append((stored.topic, Append(stored.partition, stored.key, stored.value)))
            at += size
        self._peeked = at
        return waiting

    def mark_sent(self) -> None:
        """Marks the records of the last ``peek`` as sent."""
        self.sent = self._peeked
        self.write_progress()

    def write_progress(self) -> None:
        """Writes how far the file was sent. Once a fully sent file's header is written, the file is
        truncated; until then new records follow the sent ones, where the old header leads."""
        try:
            self._write_head(self.sent)
            if not self.pending:
                os.ftruncate(self._fd, _HEAD.size)
                self._write_head(_HEAD.size)
                self.sent = self._peeked = self.end = _HEAD.size
        except OSError as error:  # after a crash these records are sent again
            _LOG.warning("spool progress can't be written", extra={"error": str(error)})

    def close(self) -> None:
        """Unlocks the file; removes it if nothing is pending."""
        try:
            if not self.pending:
                self.path.unlink(missing_ok=True)
        except OSError as error:  # the replica that adopts it tries again
            _LOG.warning("an empty spool file can't be removed", extra={"error": str(error)})
        finally:
            os.close(self._fd)

    def _write_head(self, sent: int) -> None:
        head = _HEAD.pack(_MAGIC, self._log, sent)
        _check_written(os.pwrite(self._fd, head, 0), self.path)

    def _read(self, at: int) -> tuple[int, _Stored] | None:
        head = os.pread(self._fd, _RECORD.size, at)
        if len(head) < _RECORD.size:
            return None
        size, crc = _RECORD.unpack(head)
        if size > min(_MAX_BYTES, self.end - at - _RECORD.size):
            return None
        body = os.pread(self._fd, size, at + _RECORD.size)
        if zlib.crc32(body) != crc:
            return None
        try:
            return _RECORD.size + size, msgspec.msgpack.decode(body, type=_Stored)
        except msgspec.MsgspecError:
            return None


def _check_written(size: int, path: Path) -> None:
    if size < _HEAD.size:
        raise OSError(errno.ENOSPC, f"{size} of {_HEAD.size} bytes written", str(path))


def digest_of(log_id: str) -> bytes:
    return hashlib.blake2b(log_id.encode(), digest_size=16).digest()


class DiskSpool:
    """Own spool file and adopted ones. Belongs to one thread."""

    def __init__(self, folder: Path, log_id: str, max_bytes: int) -> None:
        self._folder, self._log_id, self._max_bytes = folder, log_id, max_bytes
        self._own: SpoolFile | None = None
        self._adopted: list[SpoolFile] = []
        self._torn = 0

    @property
    def pending(self) -> int:
        """Bytes not sent, in all files."""
        return self.own_pending + sum(file.pending for file in self._adopted)

    @property
    def own_pending(self) -> int:
        return 0 if self._own is None else self._own.pending

    @property
    def torn(self) -> int:
        """Number of files with an unreadable end."""
        return self._torn + sum(file.torn for file in self._files())

    def append(self, waiting: Sequence[Waiting]) -> int:
        """Appends as many records as there is room for; returns their number."""
        if not waiting or not self._max_bytes:
            return 0
        if self._own is None:
            try:
                self._own = SpoolFile.create(self._folder, self._log_id)
            except OSError as error:
                _LOG.warning("impressions can't be spooled", extra={"error": str(error)})
                return 0
        if not self._own.pending:
            self._own.write_progress()  # again: if that failed, sent records still take up room
        return self._own.append(waiting, self._max_bytes - self._own.end)

    def adopt(self) -> None:
        """Takes over the files of replicas that ended."""
        open_paths = {file.path for file in self._files()}
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            if path not in open_paths and (file := SpoolFile.adopt(path, self._log_id)):
                self._adopted.append(file)

    def peek(self, most: int) -> list[Waiting]:
        """Oldest records of an adopted file; without one, of the own file."""
        while self._adopted:
            if waiting := self._adopted[0].peek(most):
                return waiting
            self._drop_adopted()
        return [] if self._own is None else self._own.peek(most)

    def mark_sent(self) -> None:
        if self._adopted:
            self._adopted[0].mark_sent()
            if not self._adopted[0].pending:
                self._drop_adopted()
        elif self._own is not None:
            self._own.mark_sent()

    def close(self) -> None:
        for file in self._files():
            file.close()

    def _files(self) -> list[SpoolFile]:
        return [file for file in (*self._adopted, self._own) if file is not None]

    def _drop_adopted(self) -> None:
        file = self._adopted.pop(0)
        self._torn += file.torn
        file.close()
