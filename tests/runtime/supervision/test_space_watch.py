"""Measuring a state folder, and the file that tells all parts the space level."""

import errno
import os
from pathlib import Path

import pytest

from recsys.config.safety_config import DiskConfig
from recsys.process.disk_budget import Level
from recsys.process.slot_file import SlotFile
from recsys.process.space_file import FILE, SpaceReader, read_space
from runtime.supervision.space_watch import SpaceWatch, bytes_by_kind

GB = 10**9


def fill(path: Path, size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(size))
    return path


def test_bytes_are_counted_by_folder_and_topic_and_hard_links_once(tmp_path):
    first = fill(tmp_path / "snapshots/main/000000-000000000500/part-0/arrays", 100_000)
    second = tmp_path / "snapshots/main/000000-000000001000/part-0/arrays"
    second.parent.mkdir(parents=True)
    os.link(first, second)
    for name in ("events.sqlite", "events.sqlite-wal", "steps.sqlite"):
        fill(tmp_path / "log" / name, 50_000)
    fill(tmp_path / "archive/events/day=2026-11-24/hour=15/part-0-0-9.parquet", 30_000)
    fill(tmp_path / "warmup.json", 100)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "ray").symlink_to("/usr")
    kinds = bytes_by_kind(tmp_path)
    assert set(kinds) == {
        "snapshots",
        "log/events",
        "log/steps",
        "archive",
        "other",
    }  # not what the link leads to
    assert 100_000 <= kinds["snapshots"] < 110_000
    assert 100_000 <= kinds["log/events"] < 110_000 and 50_000 <= kinds["log/steps"] < 60_000
    assert 30_000 <= kinds["archive"] < 40_000


def test_files_that_go_while_they_are_counted_are_left_out(tmp_path, monkeypatch):
    fill(tmp_path / "archive" / "a", 10)
    scandir = os.scandir

    def removing(folder):
        listed = scandir(folder)
        (tmp_path / "archive" / "a").unlink(missing_ok=True)
        return listed

    monkeypatch.setattr(os, "scandir", removing)
    assert bytes_by_kind(tmp_path / "archive") == {}
    assert bytes_by_kind(tmp_path / "nothing") == {}


def watch(tmp_path, free):
    (tmp_path / "run").mkdir(exist_ok=True)
    clock = [1_000_000]
    return SpaceWatch(tmp_path, DiskConfig(), lambda: clock[0], lambda _: free[0]), clock


def test_readers_see_the_level_within_a_second_and_no_restriction_by_an_old_file(tmp_path):
    free = [50 * GB]
    space, clock = watch(tmp_path, free)
    reader = SpaceReader(tmp_path, lambda: clock[0])
    assert reader.level is Level.OK  # no file yet
    free[0] = GB // 10
    space.turn()
    assert read_space(tmp_path, clock[0]).level is Level.FULL
    assert reader.level is Level.OK  # read a moment ago
    reader._due_s = 0.0
    assert reader.level is Level.FULL
    clock[0] += 60_000
    reader._due_s = 0.0
    assert reader.level is Level.OK  # the supervisor has ended


def test_the_level_rises_on_a_full_disk_and_the_file_needs_no_room(tmp_path, monkeypatch):
    free = [50 * GB]
    space, clock = watch(tmp_path, free)
    fill(tmp_path / "archive" / "a", 10)
    space.turn()
    inode = (tmp_path / "run" / FILE).stat().st_ino

    def no_room(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SlotFile, "_create", no_room)
    free[0] = 0
    space.update()
    assert read_space(tmp_path, clock[0]).level is Level.FULL
    assert (tmp_path / "run" / FILE).stat().st_ino == inode


def test_a_change_of_the_level_is_logged_once(tmp_path, caplog):
    free = [GB]
    space, _ = watch(tmp_path, free)
    for _ in range(3):
        space.update()
    assert [record.message for record in caplog.records] == ["disk space: low"]
    assert "disk.free_gb" in caplog.records[0].why


def test_a_file_that_is_damaged_restricts_nothing(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / FILE).write_bytes(b"{")
    assert read_space(tmp_path, 0) is None
    with pytest.raises(OSError):
        SpaceWatch(tmp_path / "nothing", DiskConfig(), free_of=lambda _: GB).turn()
