"""A small archive of examples, and ways to damage it."""

from pathlib import Path
from struct import pack, unpack

from recsys.events.event_types import Tick, encode
from recsys.events.records import EVENTS, EXAMPLES, Example
from recsys.log.protocol import Append
from tests.support.training.small_feed import PARTITIONS, START_MS, append_examples, example, toy_log
from training.archive.digest import MARK
from training.archive.files import files_of
from training.archive.writer import Archive

MINUTE_MS = 180_000  # of which 20 make an hour: an example each

COUNT = 81
_SEAL_BYTES = len(MARK) + 32


def at(n: int, **changes: object) -> Example:
    """Example n, closed in minute n, the n-th of its partition's third."""
    return example(n, closed_ms=START_MS + n * MINUTE_MS, **changes)


def archived(folder: Path, also: list[Append] = (), examples: list[Example] | None = None) -> Path:  # type: ignore[assignment]
    log = toy_log()
    its = Archive(log, folder, lambda: 0)
    for start in range(0, COUNT, 20):  # so that an hour is over before the next begins
        append_examples(log, (examples or [at(n) for n in range(COUNT)])[start : start + 20])
        while its.turn():
            pass
    log.append(EXAMPLES, list(also))
    end = Tick(time_ms=START_MS + 2 * COUNT * MINUTE_MS)
    log.append(EVENTS, [Append(p, b"", encode(end)) for p in range(PARTITIONS)])
    while its.turn():
        pass
    its.flush()
    return folder


def hour_file(archive: Path, partition: int, number: int) -> Path:
    return [h.path for h in files_of(archive, EXAMPLES) if h.partition == partition][number]


def remove_hour(archive: Path) -> None:
    hour_file(archive, 1, 1).unlink()


def remove_digests(*paths: Path) -> None:
    """Takes the digests from files."""
    for path in paths:
        data = path.read_bytes()
        length, magic = unpack("<I4s", data[-8:])
        end = len(data) - 8 - _SEAL_BYTES
        assert data[end:].startswith(MARK), f"{path} has no digest"
        path.write_bytes(data[:end] + pack("<I4s", length - _SEAL_BYTES, magic))
