"""Several workers write the archive of one, after kills and changes of their number too."""

import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.config.system_config import Config
from recsys.events.event_types import Item, Tick, encode
from recsys.events.records import EVENTS, EXAMPLES, ITEMS
from recsys.log.protocol import Append, MemoryLog
from recsys.log.sqlite_log import SqliteLog
from recsys.process.open_log import create_topics, open_log
from recsys.process.part_process import Heartbeat, Stop
from recsys.process.worker_share import WHOLE, Share, leased
from tests.support.training.small_feed import (
    PARTITIONS,
    START_MS,
    append_events,
    append_examples,
    example,
    feed,
    toy_log,
)
from training import archive_part
from training.archive.files import drop_oldest, files_of, hour_of
from training.archive.writer import PART, Archive, archived_rows

TOPICS = (EVENTS, ITEMS, EXAMPLES)
HOUR_MS = 3_600_000


def drain(archive: Archive) -> Archive:
    while archive.turn():
        pass
    archive.flush()
    return archive


def fill(log: MemoryLog, hours: int = 3) -> None:
    """Events, examples and items; and ticks of some hours on all partitions."""
    append_events(log, feed(30))
    append_examples(log, [example(n) for n in range(10)])
    log.append(ITEMS, [Append(0, b"v1", encode(Item(time_ms=5, item_id="v1")))])
    for hour in range(hours):
        tick = encode(Tick(time_ms=START_MS + hour * HOUR_MS))
        log.append(EVENTS, [Append(p, b"", tick) for p in range(PARTITIONS)])


def contents(folder: Path) -> dict[str, list[object]]:
    columns = ("partition", "offset", "key", "value")
    return {topic: list(archived_rows(folder, topic, columns)) for topic in TOPICS}


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.parquet"))


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_write_the_files_of_one(tmp_path: Path, workers: int) -> None:
    log = toy_log()
    fill(log)
    drain(Archive(log, tmp_path / "alone", lambda: 0))
    for index in range(workers):
        drain(Archive(log, tmp_path / "shared", lambda: 0, Share(index, workers)))
    assert names(tmp_path / "shared") == names(tmp_path / "alone") != []
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")


def test_a_worker_archives_and_holds_its_partitions_and_the_first_the_catalogue(tmp_path: Path) -> None:
    log = toy_log()
    fill(log)
    archive = drain(Archive(log, tmp_path, lambda: 0, Share(1, 3)))
    assert archive.offsets(EVENTS) == [-1, log.end(EVENTS, 1), -1] and archive.offsets(ITEMS) == [-1]
    held = [bool(log.holds(topic, p)) for topic in (EVENTS, EXAMPLES) for p in range(PARTITIONS)]
    assert held == [False, True, False] * 2 and not log.holds(ITEMS, 0)
    assert {file.partition for file in files_of(tmp_path, EVENTS)} == {1}
    first = drain(Archive(log, tmp_path, lambda: 0, Share(0, 3)))
    assert first.offsets(ITEMS) == [1] and len(files_of(tmp_path, ITEMS)) == 1


def test_a_worker_that_pauses_releases_its_partitions_alone(tmp_path: Path) -> None:
    log = toy_log()
    fill(log)
    first, second, third = (drain(Archive(log, tmp_path, lambda: 0, Share(index, 3))) for index in range(3))

    def held() -> list[bool]:
        return [PART in log.holds(topic, p) for topic in (EVENTS, EXAMPLES) for p in range(PARTITIONS)]

    assert held() == [True] * 6
    second.pause(release=True)
    assert held() == [True, False, True] * 2
    third.pause(release=False)
    first.pause(release=True)
    assert held() == [False, False, True] * 2
    second.turn()
    assert held() == [False, True, True] * 2


@settings(max_examples=12, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3), st.booleans(), st.integers(0, 9)), max_size=5))
def test_neither_kills_nor_another_number_of_workers_lose_or_repeat_a_record(
    changes: list[tuple[int, bool, int]],
) -> None:
    """Each change: the number of workers, whether one of them doesn't run meanwhile, and how many writes of
    files and turns there are until the kill."""
    with TemporaryDirectory() as at:
        log, folder = toy_log(), Path(at)
        for number, (workers, rests, acts) in enumerate([*changes, (2, False, 99)]):
            fill(log, hours=number + 1)
            shares = [Share(index, workers) for index in range(rests and workers > 1, workers)]
            archives = [Archive(log, folder, lambda: 0, share) for share in shares]
            for act in range(acts):
                archive = archives[act % len(archives)]
                archive.turn()
                if act % 3 == 1:
                    archive.flush()
        for archive in archives:
            drain(archive)
        found = contents(folder)
        for topic in TOPICS:
            assert [row[:2] for row in found[topic]] == [  # type: ignore[index]
                (p, offset) for p in range(log.partitions(topic)) for offset in range(log.end(topic, p))
            ]
        drain(Archive(log, folder / "alone", lambda: 0))
        assert found == contents(folder / "alone")


def test_a_worker_that_starts_leaves_files_of_others_alone(tmp_path: Path) -> None:
    log = toy_log()
    fill(log)
    drain(Archive(log, tmp_path, lambda: 0))
    files = {file.partition: file.path for file in files_of(tmp_path, EVENTS)}
    partial = {p: path.with_name(f".part-{p}-0-1.parquet.77") for p, path in files.items()}
    covered = {p: path.with_name(f"part-{p}-0-0.parquet") for p, path in files.items()}
    for path in (*partial.values(), *covered.values()):
        path.write_bytes(b"half")
    Archive(log, tmp_path, lambda: 0, Share(1, 3))
    assert [path.exists() for path in (*partial.values(), *covered.values())] == [1, 0, 1] * 2


def test_workers_drop_the_hours_that_one_would(tmp_path: Path) -> None:
    log = toy_log()
    fill(log, hours=30)
    folders = [tmp_path / name for name in ("alone", "shared")]
    for folder in folders:
        drain(Archive(log, folder, lambda: 0))
    emptied = [shutil.copytree(folder, tmp_path / f"emptied-{folder.name}") for folder in folders]
    dropped = drop_oldest(emptied[0], 0)
    parts = [drop_oldest(emptied[1], 0, Share(index, 3)) for index in (2, 0, 1, 2)]
    assert names(emptied[1]) == names(emptied[0])
    assert sum(parts) == dropped and 0 == parts[3] < parts[0] < dropped / 2

    most = sum(map(bytes_of, folders[1].rglob("*.parquet"))) // 2
    drop_oldest(folders[0], most)
    for index in (2, 0, 1):
        drop_oldest(folders[1], most, Share(index, 3))
    found = [files_of(folder, EVENTS) for folder in folders]
    alone, shared = ({hour_of(file.path) for file in files} for files in found)
    # The last to drop may find an hour less to be enough.
    assert min(alone) - 1 <= min(shared) and len(found[1]) - len(found[0]) < PARTITIONS
    assert most // 2 < sum(map(bytes_of, folders[1].rglob("*.parquet"))) <= most
    assert not any(drop_oldest(folders[1], most, Share(index, 3)) for index in range(3))


def bytes_of(path: Path) -> int:
    return path.lstat().st_blocks * 512


def test_a_partition_that_another_process_archives_is_refused(tmp_path: Path) -> None:
    config = replace(Config(), state=str(tmp_path))
    log = open_log(config)
    create_topics(log, config)
    with leased(tmp_path, PART, [3]):
        for share in (WHOLE, Share(1, 2)):
            with pytest.raises(RuntimeError, match="partition 3 of archive belongs to another"):
                archive_part.run(config, Stop(Heartbeat(PART)), share)
        stop = Stop(Heartbeat(PART))
        stop.set()
        archive_part.run(config, stop, Share(0, 2))
    assert isinstance(log, SqliteLog)
    log.close()
