"""SHA-256 of an archive file, stored in the file itself, and reading of files that have theirs.

    "PAR1", pages, metadata, MARK, SHA-256, length, "PAR1"

The length counts mark and digest as metadata, after which Parquet's readers ignore bytes: a signed file has
its signature there. The digest covers all other bytes of the file, and appears with it by one rename, so no
kill separates them. A file without a digest is refused as damaged.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from struct import Struct
from typing import IO, Final, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from parameter_server.storage.part_files import FileDigests

MARK: Final = b"\xffSHA256\n"
_MAGIC: Final = b"PAR1"
_END: Final = Struct("<I4s")  # length of the metadata, then _MAGIC
_SEAL: Final = len(MARK) + hashlib.sha256().digest_size
_CHUNK: Final = 1 << 20
Pace = Callable[[int], None]
T = TypeVar("T")


class DamagedFile(ValueError):
    """An archive file isn't as it was written, or can't be read."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"{path} is damaged or can't be read: {reason}; bring it back from a backup, or move it away to "
            "continue without its records"
        )
        self.path, self.reason = path, reason


def seal(path: Path) -> None:
    """Adds its digest to a Parquet file that has none."""
    with path.open("r+b") as file:
        file.seek(-_END.size, os.SEEK_END)
        length, magic = _END.unpack(file.read())
        file.seek(-_END.size, os.SEEK_END)
        file.write(MARK + bytes(_SEAL - len(MARK)) + _END.pack(length + _SEAL, magic))
        file.flush()
        digest = _digest(file, lambda _: None)
        file.seek(-_END.size - len(digest), os.SEEK_END)
        file.write(digest)


def check_digest(path: Path, digest_of: Callable[[Path], str] | None = None) -> None:
    """Compares a file with its digest. ``digest_of``: as ``content_digest``. Raises DamagedFile, or
    FileNotFoundError."""
    with naming(path):
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _SEAL - _END.size))
            end = file.read()
        if not end.startswith(MARK):
            raise ValueError(f"it ends with {end[: len(MARK)]!r}, expected {MARK!r} and its SHA-256")
        if (digest_of or content_digest)(path) != end[len(MARK) : _SEAL].hex():
            raise ValueError("its SHA-256 isn't the one stored in it")


def content_digest(path: Path, pace: Pace = lambda _: None) -> str:
    """SHA-256 of a file but for the digest in it. ``pace`` gets the numbers of bytes that are read."""
    with path.open("rb") as file:
        return _digest(file, pace).hex()


def read_batches(path: Path, rows: int, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Yields the rows of an intact file, ``rows`` at a time. Raises DamagedFile, or FileNotFoundError."""
    return checked(path, _batches(path, rows, columns))


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Some columns of an intact file. Raises DamagedFile, or FileNotFoundError."""
    check_digest(path, DIGESTS)
    with naming(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        return file.read(columns=columns)


def checked(path: Path, reading: Iterator[T]) -> Iterator[T]:
    """Compares a file with its digest, then yields what ``reading`` yields from it. Raises DamagedFile, or
    FileNotFoundError."""
    check_digest(path, DIGESTS)
    with naming(path):
        yield from reading


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Raises DamagedFile for an error of reading a file: damaged metadata may raise any kind."""
    try:
        yield
    except (FileNotFoundError, DamagedFile):
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise DamagedFile(path, reason) from error


def _batches(path: Path, rows: int, columns: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        yield from file.iter_batches(rows, columns=columns, use_threads=False)


def _digest(file: IO[bytes], pace: Pace) -> bytes:
    """SHA-256 of all but the digest's own place."""
    left = os.fstat(file.fileno()).st_size - _END.size - hashlib.sha256().digest_size
    sha256 = hashlib.sha256()
    file.seek(0)
    while left > 0 and (data := file.read(min(left, _CHUNK))):
        sha256.update(data)
        pace(len(data))
        left -= len(data)
    file.seek(-_END.size, os.SEEK_END)
    sha256.update(file.read())
    return sha256.digest()


DIGESTS: Final = FileDigests(digest_of=content_digest)
