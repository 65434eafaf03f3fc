"""An archive file has its SHA-256 in itself: all damage has a name, and no kill separates the two."""

import shutil
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from struct import pack, unpack
from typing import Any

import pyarrow.parquet as pq
import pytest

from recsys.events.records import EVENTS, EXAMPLES
from tests.support.simulation.bit_flips import flip_bit, with_flips
from tests.support.training.archived_examples import archived, hour_file, remove_digests
from tests.support.training.small_feed import append_events, feed, toy_log
from training.archive import digest, files
from training.archive.digest import MARK, DamagedFile, check_digest, content_digest, read_batches, read_table
from training.archive.files import erase_rows, files_of, keys_of, merge_files
from training.archive.raw_events import ArchiveSource
from training.archive.writer import Archive, archived_rows
from training.deletion.tombstones import free_until
from training.offline.archive import Range, end_of, fingerprint

COLUMNS = ("partition", "offset", "key", "value")
NAMED = "damaged or can't be read: .*SHA-256.*bring it back from a backup"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return archived(tmp_path / "archive")


def paths(archive: Path) -> list[Path]:
    return sorted(archive.glob("*/day=*/hour=*/part-*.parquet"))


def check_all(archive: Path) -> None:
    """Raises DamagedFile for a file without its digest."""
    for path in paths(archive):
        check_digest(path)


def footer_bit(path: Path) -> int:
    """A bit of the metadata that Parquet doesn't miss: in its writer's name."""
    return 8 * (path.read_bytes().rindex(b"parquet-cpp-arrow") + 3) + 1


def test_every_file_has_a_digest_and_parquets_readers_ignore_it(archive: Path) -> None:
    assert len(paths(archive)) > 10
    check_all(archive)
    path = hour_file(archive, 0, 0)
    data = path.read_bytes()
    length, magic = unpack("<I4s", data[-8:])
    assert magic == b"PAR1" and data[-48:-40] == MARK
    assert pq.read_metadata(path).serialized_size == length - 40
    with_digest = pq.read_table(path, partitioning=None)
    remove_digests(path)
    assert pq.read_table(path, partitioning=None).equals(with_digest)
    for read in (check_digest, read_table, lambda path: list(read_batches(path, 10))):
        with pytest.raises(DamagedFile, match="expected b'.xffSHA256.n' and its SHA-256"):
            read(path)


def test_every_flipped_bit_of_a_small_file_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "part-0-0-9.parquet"
    pq.write_table(pq.read_table(hour_file(archived(tmp_path), 0, 0)).slice(0, 1), path)
    digest.seal(path)
    intact = path.read_bytes()
    for bit in [*range(0, 8 * len(intact), 311), *range(8 * (len(intact) - 60), 8 * len(intact))]:
        flip_bit(path, bit, intact)
        with pytest.raises(DamagedFile, match=str(path)):
            check_digest(path)
    path.write_bytes(intact)
    check_digest(path)


@pytest.mark.parametrize("length", [0, 3, 40, 48, 1000, -1, -8, -48])
def test_a_file_that_was_cut_off_is_damaged(archive: Path, length: int) -> None:
    path = hour_file(archive, 0, 0)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DamagedFile):
        check_digest(path)


@pytest.mark.parametrize("place", range(8))
def test_a_digest_whose_mark_is_gone_is_damage(archive: Path, place: int) -> None:
    path = hour_file(archive, 0, 0)
    flip_bit(path, 8 * (path.stat().st_size - 48 + place))
    with pytest.raises(DamagedFile, match="it ends with .* and its SHA-256"):
        check_digest(path)
    path.write_bytes(path.read_bytes()[:-48] + bytes(40) + path.read_bytes()[-8:])
    with pytest.raises(DamagedFile):
        check_digest(path)


@pytest.mark.parametrize("kind", [OverflowError, MemoryError, OSError, UnicodeError, KeyError])
def test_whatever_reading_a_file_raises_names_it(
    archive: Path, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = hour_file(archive, 0, 0)

    def fails(*of: object, **options: object) -> None:
        raise kind("absurd")

    monkeypatch.setattr(pq, "ParquetFile", fails)
    with pytest.raises(DamagedFile, match=f"{path.name} is damaged.*absurd"):
        list(read_batches(path, 10))


def test_a_file_that_is_gone_is_not_damaged(tmp_path: Path) -> None:
    for read in (check_digest, read_table, lambda path: list(read_batches(path, 10))):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "part-0-0-1.parquet")


def test_pace_gets_all_that_is_read(archive: Path) -> None:
    path, read = hour_file(archive, 0, 0), list[int]()
    content_digest(path, read.append)
    assert sum(read) == path.stat().st_size - 40


Read = Callable[[Path], object]
READERS: dict[str, Read] = {
    "rows": lambda archive: list(archived_rows(archive, EXAMPLES, COLUMNS)),
    "keys": lambda archive: keys_of(archive, EXAMPLES, 0),
    "offline, range": lambda archive: fingerprint(archive, Range(1 << 60)),
    "offline, end": lambda archive: end_of(archive, files_of(archive, EXAMPLES)),
    "unlearning": lambda archive: free_until(Begins(), archive, 0, [b"none"], None, ()),  # type: ignore[arg-type]
    "log": lambda archive: list(ArchiveSource(archive).records(EVENTS, 0)),
}


class Begins:
    """A log that has dropped what is archived."""

    def begin(self, topic: str, partition: int) -> int:
        return 10_000

    def end(self, topic: str, partition: int) -> int:
        return 10_000


@pytest.mark.parametrize("name", READERS)
def test_readers_refuse_a_damaged_file_by_name(archive: Path, name: str) -> None:
    topic = EVENTS if name in ("log", "offline, end") else EXAMPLES
    path = [file.path for file in files_of(archive, topic) if file.partition == 0][-1]
    if name == "unlearning":  # it reads from the beginning on
        path = hour_file(archive, 0, 0)
    READERS[name](archive)
    flip_bit(path, footer_bit(path))
    pq.ParquetFile(path).read()  # Parquet doesn't see it
    with pytest.raises(DamagedFile, match=f"{path} is {NAMED}"):
        READERS[name](archive)


def test_a_damaged_file_gets_no_digest_by_merging(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = toy_log()
    writer = Archive(log, tmp_path, lambda: 0)
    for number in range(3):
        append_events(log, feed(4, first=4 * number))
        writer.turn()
        writer.flush()
    parts = [file for file in files_of(tmp_path, EVENTS) if file.partition == 0]
    flip_bit(parts[1].path, footer_bit(parts[1].path))
    before = {part.path: part.path.read_bytes() for part in parts}
    merge_files(parts)
    assert {path: path.read_bytes() for path in before} == before
    assert f"aren't merged: {parts[1].path} is damaged" in caplog.text
    assert not list(tmp_path.rglob(".part*"))


class Killed(BaseException):
    """The process ends here."""


def kills(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Ends the process at the ``at``-th of its acts on files, before or after it."""
    acts = count()

    def dying(act: Callable[..., Any]) -> Callable[..., Any]:
        def call(*of: Any, **options: Any) -> Any:
            if next(acts) == at:
                raise Killed
            result = act(*of, **options)
            if next(acts) == at:
                raise Killed
            return result

        return call

    monkeypatch.setattr(files.os, "fsync", dying(files.os.fsync))
    monkeypatch.setattr(files.os, "replace", dying(files.os.replace))
    monkeypatch.setattr(Path, "unlink", dying(Path.unlink))
    monkeypatch.setattr(digest, "_digest", dying(digest._digest))  # in the middle of sealing
    monkeypatch.setattr(files, "seal", dying(digest.seal))
    monkeypatch.setattr(files.pq, "ParquetWriter", dying(files.pq.ParquetWriter))


def survived(archive: Path, act: Callable[[Path], object]) -> Iterator[Path]:
    """Yields copies of an archive in which ``act`` was ended at each place in turn."""
    for at in count():
        copy = archive.with_name(f"killed-{at}")
        shutil.copytree(archive, copy)
        with pytest.MonkeyPatch.context() as patch:
            kills(patch, at)
            try:
                act(copy)
            except Killed:
                pass
            else:
                shutil.rmtree(copy)
                return
        yield copy
        shutil.rmtree(copy)


@pytest.mark.slow
def test_a_kill_at_any_place_leaves_files_that_have_their_digests(tmp_path: Path) -> None:
    log = toy_log()
    intact = tmp_path / "archive"
    writer = Archive(log, intact, lambda: 0)
    for number in range(3):
        append_events(log, feed(8, first=8 * number))
        writer.turn()
        writer.flush()
    rows = list(archived_rows(intact, EVENTS, COLUMNS))
    append_events(log, feed(8, first=24))
    key = next(row[2] for row in rows if row[0] == 0 and row[2])
    left = [row for row in rows if row[:3:2] != (0, key)]

    def writes(archive: Path) -> None:
        again = Archive(log, archive, lambda: 0)
        again.turn()
        again.flush()

    def merges(archive: Path) -> None:
        merge_files([file for file in files_of(archive, EVENTS) if file.partition == 0])

    def erases(archive: Path) -> None:
        erase_rows(archive, EVENTS, 0, [key], lambda record: record.key == key)

    for act, least in ((writes, 10), (merges, 12), (erases, 12)):
        places = 0
        for archive in survived(intact, act):
            places += 1
            check_all(archive)  # `recsys check` accepts them
            act(archive)  # the next start does it again
            Archive(log, archive, lambda: 0)
            check_all(archive)
            assert not list(archive.rglob(".part*"))
            after = list(archived_rows(archive, EVENTS, COLUMNS))
            assert after[: len(rows)] == rows if act is merges else set(left) <= set(after)
        assert places >= least


@pytest.mark.slow
def test_flips_in_a_sealed_file_are_all_found(archive: Path) -> None:
    path = max(paths(archive), key=lambda path: path.stat().st_size)
    for bit in with_flips(path, 1_000, seed=3):
        try:
            check_digest(path)
        except DamagedFile:
            continue
        raise AssertionError(f"bit {bit} of {path.name} passed")


def test_the_length_counts_mark_and_digest(archive: Path) -> None:
    path = hour_file(archive, 0, 0)
    data = path.read_bytes()
    length = unpack("<I", data[-8:-4])[0]
    path.write_bytes(data[:-8] + pack("<I4s", length - 40, b"PAR1"))
    with pytest.raises(DamagedFile):
        check_digest(path)
