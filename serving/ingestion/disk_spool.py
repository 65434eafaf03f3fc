"""Impressions that wait on disk while the log is away, oldest first; also those of a replica that ended.

One file for each replica, locked while it lives: a file that can be locked belongs to nobody any more, and
who finds it sends it. A record is length, CRC-32 and MessagePack; the head names the log that it is for, and
how far it was sent. Nothing is synced: it outlives the process, not a power cut. After a crash one batch at
most is sent twice, which readers drop by the request's id.
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
from pathlib import Path
from typing import Final

import msgspec

from recsys.log.protocol import Append

_MAGIC: Final = b"kept-1\n\0"
_HEAD: Final = struct.Struct("<8s16sQ")  # magic, digest of the log's id, sent up to here
_RECORD: Final = struct.Struct("<II")  # bytes, CRC-32
_MOST_BYTES: Final = 64 << 20  # of a record: what says more is no record
_SUFFIX: Final = ".kept"

Waiting = tuple[str, Append]  # topic and record


class _Stored(msgspec.Struct, array_like=True):
    topic: str
    partition: int
    key: bytes
    value: bytes


class SpoolFile:
    """One file, held open and locked. ``end``: where the next record goes; ``sent``: what went out."""

    def __init__(self, path: Path, fd: int, log: bytes, sent: int) -> None:
        self.path, self._fd, self._log = path, fd, log
        self.end = os.fstat(fd).st_size
        if not _HEAD.size <= sent <= self.end:  # it ended while it was to begin anew
            sent = _HEAD.size
        self.sent = self._peeked = sent
        self.torn = 0

    @classmethod
    def made(cls, folder: Path, log_id: str) -> "SpoolFile":
        """A new one. It gets its name once it is locked, so that nobody takes it for left behind. Raises
        OSError where the disk has no room for its head."""
        folder.mkdir(parents=True, exist_ok=True)
        name = uuid.uuid4().hex
        unnamed = folder / f"{name}.new"
        fd = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        path = folder / (name + _SUFFIX)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            head = _HEAD.pack(_MAGIC, digest_of(log_id), _HEAD.size)
            if (written := os.write(fd, head)) < len(
                head
            ):  # a part of it would be taken for a file
                raise OSError(errno.ENOSPC, f"{written} of {len(head)} bytes written", str(unnamed))
            os.rename(unnamed, path)
        except OSError:
            os.close(fd)
            unnamed.unlink(missing_ok=True)
            raise
        return cls(path, fd, digest_of(log_id), _HEAD.size)

    @classmethod
    def left(cls, path: Path, log_id: str) -> "SpoolFile | None":
        """A file whose replica is gone; None where it lives, or where the file is for another log."""
        try:
            fd = os.open(path, os.O_RDWR)
        except OSError:
            return None  # another replica was quicker
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            head = os.pread(fd, _HEAD.size, 0)
            exists = path.exists()
        except OSError:
            os.close(fd)
            return None
        if len(head) == _HEAD.size and exists:
            magic, log, sent = _HEAD.unpack(head)
            if magic == _MAGIC and log == digest_of(log_id):
                return cls(path, fd, log, sent)
        os.close(fd)
        return None

    @property
    def pending(self) -> int:
        """Bytes that wait."""
        return self.end - self.sent

    def put(self, waiting: Sequence[Waiting], room: int) -> int:
        """Appends as many as fit into ``room`` bytes; returns how many: none where the disk takes no more."""
        block, count = bytearray(), 0
        for topic, (partition, key, value) in waiting:
            body = msgspec.msgpack.encode(_Stored(topic, partition, key, value))
            if len(block) + _RECORD.size + len(body) > room:
                break
            block += _RECORD.pack(len(body), zlib.crc32(body)) + body
            count += 1
        try:
            if os.pwrite(self._fd, block, self.end) < len(block):  # the disk is full
                os.ftruncate(self._fd, self.end)  # nothing of it counts
                return 0
        except OSError as error:
            logging.getLogger(__name__).warning("not kept", extra={"error": str(error)})
            return 0
        self.end += len(block)
        return count

    def peek(self, most: int) -> list[Waiting]:
        """The oldest that wait, as far as they can be read: what is behind a bad record is given up."""
        found: list[Waiting] = []
        at = self.sent
        while at < self.end and len(found) < most:
            record = self._read(at)
            if record is None:
                self.torn += 1
                self.end = at
                break
            size, stored = record
            found.append((stored.topic, Append(stored.partition, stored.key, stored.value)))
            at += size
        self._peeked = at
        return found

    def sent_peeked(self) -> None:
        """What was peeked last has been sent."""
        self.sent = self._peeked
        self.note_sent()

    def note_sent(self) -> None:
        """Notes how far it was sent. A file that is sent whole begins anew, once that is on disk: until then
        more goes behind what was sent, to where a head of before leads."""
        try:
            self._write_head(self.sent)
            if not self.pending:
                os.ftruncate(self._fd, _HEAD.size)
                self._write_head(_HEAD.size)
                self.sent = self._peeked = self.end = _HEAD.size
        except OSError as error:  # known here all the same; after a crash it may be sent again
            logging.getLogger(__name__).warning("sent, not noted", extra={"error": str(error)})

    def close(self) -> None:
        """Lets go of the file; an empty one is removed."""
        try:
            if not self.pending:
                self.path.unlink(missing_ok=True)
        except OSError as error:  # nothing waits in it: who finds it tries again
            logging.getLogger(__name__).warning("not removed", extra={"error": str(error)})
        finally:
            os.close(self._fd)

    def _write_head(self, sent: int) -> None:
        head = _HEAD.pack(_MAGIC, self._log, sent)
        if (written := os.pwrite(self._fd, head, 0)) < len(head):
            raise OSError(errno.ENOSPC, f"{written} of {len(head)} bytes written", str(self.path))

    def _read(self, at: int) -> tuple[int, _Stored] | None:
        head = os.pread(self._fd, _RECORD.size, at)
        if len(head) < _RECORD.size:
            return None
        size, crc = _RECORD.unpack(head)
        if size > min(_MOST_BYTES, self.end - at - _RECORD.size):
            return None
        body = os.pread(self._fd, size, at + _RECORD.size)
        if zlib.crc32(body) != crc:
            return None
        try:
            return _RECORD.size + size, msgspec.msgpack.decode(body, type=_Stored)
        except msgspec.MsgspecError:
            return None


def digest_of(log_id: str) -> bytes:
    return hashlib.blake2b(log_id.encode(), digest_size=16).digest()


class DiskSpool:
    """All that waits on disk: the own file, and those that were left behind. Used by one thread."""

    def __init__(self, folder: Path, log_id: str, most_bytes: int) -> None:
        self._folder, self._log_id, self._most = folder, log_id, most_bytes
        self._own: SpoolFile | None = None
        self._left: list[SpoolFile] = []
        self._torn = 0

    @property
    def pending(self) -> int:
        """Bytes that wait, those of others too."""
        return self.own_pending + sum(file.pending for file in self._left)

    @property
    def own_pending(self) -> int:
        return 0 if self._own is None else self._own.pending

    @property
    def torn(self) -> int:
        """Files that ended in what can't be read."""
        return self._torn + sum(f.torn for f in (*self._left, self._own) if f is not None)

    def put(self, waiting: Sequence[Waiting]) -> int:
        """Keeps as many as there is room for; returns how many."""
        if not waiting or not self._most:
            return 0
        if self._own is None:
            try:
                self._own = SpoolFile.made(self._folder, self._log_id)
            except OSError as error:
                logging.getLogger(__name__).warning("not kept", extra={"error": str(error)})
                return 0
        if not self._own.pending:
            self._own.note_sent()  # again: where that failed, what was sent still takes up room
        return self._own.put(waiting, self._most - self._own.end)

    def adopt(self) -> None:
        """Takes over the files whose replicas are gone."""
        mine = {file.path for file in (*self._left, self._own) if file is not None}
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            if path not in mine and (file := SpoolFile.left(path, self._log_id)) is not None:
                self._left.append(file)

    def peek(self, most: int) -> list[Waiting]:
        """The oldest of a file that was left behind; else of the own one."""
        while self._left:
            if found := self._left[0].peek(most):
                return found
            self._drop_left()
        return [] if self._own is None else self._own.peek(most)

    def sent_peeked(self) -> None:
        if self._left:
            self._left[0].sent_peeked()
            if not self._left[0].pending:
                self._drop_left()
        elif self._own is not None:
            self._own.sent_peeked()

    def close(self) -> None:
        for file in (*self._left, self._own):
            if file is not None:
                file.close()

    def _drop_left(self) -> None:
        file = self._left.pop(0)
        self._torn += file.torn
        file.close()
