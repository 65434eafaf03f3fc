from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from recsys.events.event_types import Item, Tick, encode
from recsys.events.records import EVENTS, EXAMPLES, ITEMS, ErasedExample, Forget, pack
from recsys.log.protocol import Append, LogLost, LogUnavailable, MemoryLog
from tests.support.clock import Clock
from tests.support.training.small_feed import (
    PARTITIONS,
    START_MS,
    append_events,
    append_examples,
    example,
    feed,
    toy_log,
)
from training.archive import files as archives
from training.archive import writer as archive
from training.archive.files import files_of
from training.archive.writer import Archive, archived_rows, read_archive

HOUR_MS = 3_600_000


def archived(folder: Path, topic: str) -> list[tuple[int, int, bytes, bytes]]:
    return list(archived_rows(folder, topic, ("partition", "offset", "key", "value")))


def on_the_log(log: MemoryLog, topic: str) -> list[tuple[int, int, bytes, bytes]]:
    return [(p, *record) for p in range(log.partitions(topic)) for record in log.read(topic, p, 0, 10_000)]


def ticks(log: MemoryLog, *times_ms: int) -> None:
    log.append(EVENTS, [Append(0, b"", encode(Tick(time_ms=time_ms))) for time_ms in times_ms])


def test_every_record_stands_in_the_archive_as_on_the_log(tmp_path: Path) -> None:
    log = toy_log()
    append_events(log, feed(30))
    append_examples(log, [example(n) for n in range(10)])
    log.append(ITEMS, [Append(0, b"v1", encode(Item(time_ms=5, item_id="v1")))])
    log.append(EVENTS, [Append(0, b"", b"\xc1rubbish")])
    its = Archive(log, tmp_path, Clock())
    while its.turn():
        pass
    its.flush()
    for topic in (EVENTS, ITEMS, EXAMPLES):
        assert archived(tmp_path, topic) == on_the_log(log, topic)
        assert its.offsets(topic) == [log.end(topic, p) for p in range(log.partitions(topic))]
    table = read_archive(tmp_path, EVENTS).to_table()
    assert set(table["type"].to_pylist()) == {"impression", "engagement", "tick", "unreadable"}
    view = table.filter(pc.field("kind") == "view").slice(0, 1).to_pylist()[0]
    assert view["user_id"].startswith("u") and view["watch_ms"] >= 0 and view["request_id"]
    assert str(view["day"]) == "2023-11-14" and view["hour"] == 22
    assert set(archived_rows(tmp_path, EXAMPLES, ["type"])) == {("example",)}


def test_tombstones_are_archived_under_the_tags_of_their_records(tmp_path: Path) -> None:
    log = toy_log()
    gone = ErasedExample(sequence=1, closed_ms=START_MS)
    left = Forget(partition=0, offset=3, sequence=2, user_id="u1", closed_ms=START_MS)
    log.append(EXAMPLES, [Append(0, b"", pack(gone)), Append(0, b"u1", pack(left))])
    its = Archive(log, tmp_path, Clock())
    its.turn()
    its.flush()
    columns = ("type", "time_ms", "user_id", "item_id")
    assert list(archived_rows(tmp_path, EXAMPLES, columns)) == [
        ("erased", START_MS, None, None),
        ("forget", START_MS, "u1", None),
    ]


def test_it_writes_by_its_clock_and_the_log_keeps_what_is_not_written(tmp_path: Path) -> None:
    log, clock = toy_log(), Clock()
    its = Archive(log, tmp_path, clock)
    ticks(log, START_MS, START_MS + 1)
    its.turn()
    assert archived(tmp_path, EVENTS) == [] and log.holds(EVENTS, 0) == {"archive": 0}
    clock.now_ms = 5_000
    its.turn()
    assert len(archived(tmp_path, EVENTS)) == 2 and log.holds(EVENTS, 0) == {"archive": 2}
    clock.now_ms -= 3_600_000  # it was wrong, and is set back
    ticks(log, START_MS + 2)
    its.turn()
    assert len(archived(tmp_path, EVENTS)) == 3 and log.holds(EVENTS, 0) == {"archive": 3}


def test_a_kill_at_any_time_neither_loses_nor_repeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, clock = toy_log(), Clock()
    real, calls = archives._publish, 0

    def dies(partial: Path, path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls % 3 == 1:
            raise KeyboardInterrupt  # before it took its place
        real(partial, path)
        if calls % 3 == 2:
            raise KeyboardInterrupt  # after it did

    monkeypatch.setattr(archives, "_publish", dies)
    for n in range(30):
        append_events(log, feed(4, first=4 * n))
        ticks(log, START_MS + n * HOUR_MS // 5)
        clock.now_ms += 5_000
        try:
            its = Archive(log, tmp_path, clock)
            its.turn()
            its.flush()
        except KeyboardInterrupt:
            pass
    monkeypatch.setattr(archives, "_publish", real)
    its = Archive(log, tmp_path, clock)
    while its.turn():
        pass
    its.flush()
    assert archived(tmp_path, EVENTS) == on_the_log(log, EVENTS)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.name.startswith(".part")]


def test_an_hour_that_is_over_becomes_one_file(tmp_path: Path) -> None:
    log, clock = toy_log(), Clock()
    its = Archive(log, tmp_path, clock)
    hour = START_MS // HOUR_MS * HOUR_MS
    for n in range(5):
        ticks(log, hour + n)
        its.turn()
        its.flush()
    assert len(files_of(tmp_path, EVENTS)) == 5
    ticks(log, hour + HOUR_MS, hour + 7)  # the second came late: it stays with its neighbours
    its.turn()
    its.flush()
    names = [held.path.name for held in files_of(tmp_path, EVENTS)]
    assert names == ["part-0-0-4.parquet", "part-0-5-6.parquet"]
    again = Archive(log, tmp_path, clock)
    ticks(log, hour + 8)
    again.turn()
    again.flush()
    assert {held.path.parent for held in files_of(tmp_path, EVENTS)[1:]} == {
        files_of(tmp_path, EVENTS)[1].path.parent
    }
    assert archived(tmp_path, EVENTS) == on_the_log(log, EVENTS)


def test_a_merge_gives_the_same_rows_and_holds_a_part_of_them_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, clock = toy_log(), Clock()
    its = Archive(log, tmp_path, clock)
    for n in range(12):
        append_examples(log, [example(k, partition=0) for k in range(n, n + 30)])
        its.turn()
        its.flush()
    parts = [held for held in files_of(tmp_path, EXAMPLES) if held.partition == 0]
    whole = pa.concat_tables([pq.ParquetFile(held.path).read() for held in parts])
    assert len(parts) == 12 and len(whole) > 100
    bound = whole.nbytes // 6
    monkeypatch.setattr(archives, "FLUSH_BYTES", bound)
    monkeypatch.setattr(archives, "_MERGE_ROWS", 4)  # less than a file has
    sizes = []
    real = archives._row_groups

    def measured(paths: Iterable[Path]) -> Iterator[pa.Table]:
        for table in real(paths):
            sizes.append(table.nbytes)
            yield table

    monkeypatch.setattr(archives, "_row_groups", measured)
    archives.merge_files(parts)
    [merged] = [held for held in files_of(tmp_path, EXAMPLES) if held.partition == 0]
    assert (merged.first, merged.last) == (parts[0].first, parts[-1].last)
    assert pq.ParquetFile(merged.path).read().equals(whole)
    assert len(sizes) >= 5 and max(sizes) < 2 * bound
    about = pq.ParquetFile(merged.path).metadata
    assert about.num_row_groups == len(sizes) and about.row_group(0).column(0).compression == "ZSTD"
    assert archived(tmp_path, EXAMPLES) == on_the_log(log, EXAMPLES)


def test_files_that_a_kill_left_half_are_removed(tmp_path: Path) -> None:
    log, clock = toy_log(), Clock()
    its = Archive(log, tmp_path, clock)
    ticks(log, START_MS)
    its.turn()
    its.flush()
    half = files_of(tmp_path, EVENTS)[0].path.with_name(".part-0-1-9.parquet.77")
    half.write_bytes(b"PAR1")
    Archive(log, tmp_path, clock)
    assert not half.exists()


def test_what_a_merge_left_over_is_not_read_twice_and_is_removed(tmp_path: Path) -> None:
    log, clock = toy_log(), Clock()
    its = Archive(log, tmp_path, clock)
    for n in range(3):
        ticks(log, START_MS + n)
        its.turn()
        its.flush()
    parts = {held.path: held.path.read_bytes() for held in files_of(tmp_path, EVENTS)}
    archives.merge_files(files_of(tmp_path, EVENTS))
    for path, data in parts.items():
        path.write_bytes(data)  # as if killed before they were removed
    assert archived(tmp_path, EVENTS) == on_the_log(log, EVENTS)
    Archive(log, tmp_path, clock)
    assert not [path for path in parts if path.exists()]
    assert archived(tmp_path, EVENTS) == on_the_log(log, EVENTS)


@pytest.mark.parametrize("rows_before", [1, 3, 4])
def test_files_that_are_merged_while_they_are_read_give_each_row_once(
    tmp_path: Path, rows_before: int
) -> None:
    log = toy_log()
    its = Archive(log, tmp_path, Clock())
    for n in range(3):
        ticks(log, START_MS + 2 * n, START_MS + 2 * n + 1)
        its.turn()
        its.flush()
    rows = archived_rows(tmp_path, EVENTS, ("partition", "offset", "key", "value"))
    read = [next(rows) for _ in range(rows_before)]
    archives.merge_files(files_of(tmp_path, EVENTS))
    assert [*read, *rows] == on_the_log(log, EVENTS)


def test_a_log_that_is_away_for_a_while_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "FLUSH_BYTES", 2_000)  # it writes while it takes what was read

    class Away(MemoryLog):
        fails = 0

        def hold(self, *args: object) -> None:
            if self.fails:
                self.fails -= 1
                raise LogUnavailable("away")
            super().hold(*args)  # type: ignore[arg-type]

    log, clock = Away(), Clock()
    for topic in (EVENTS, ITEMS, EXAMPLES):
        from recsys.log.protocol import Topic

        log.create(Topic(topic, PARTITIONS))
    its = Archive(log, tmp_path, clock)
    append_events(log, feed(20))
    log.fails = 1
    with pytest.raises(LogUnavailable):
        its.turn()
    while its.turn():
        pass
    its.flush()
    assert archived(tmp_path, EVENTS) == on_the_log(log, EVENTS)


def test_the_archive_of_another_log_is_refused(tmp_path: Path) -> None:
    Archive(toy_log(), tmp_path, Clock())
    with pytest.raises(LogLost, match="archive"):
        Archive(toy_log(), tmp_path, Clock())


def test_an_archive_whose_id_a_power_cut_has_emptied_gets_it_again(tmp_path: Path) -> None:
    log = toy_log()
    Archive(log, tmp_path, Clock())
    (tmp_path / "log_id").write_text("")
    Archive(log, tmp_path, Clock())
    assert (tmp_path / "log_id").read_text() == log.id


def test_an_empty_archive_reads_as_nothing(tmp_path: Path) -> None:
    table = read_archive(tmp_path, EVENTS).to_table()
    assert len(table) == 0 and {"value", "day", "hour"} <= set(table.column_names)
