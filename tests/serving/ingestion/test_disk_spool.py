"""Records that wait on disk for the log: order, bounds, damage and ownership."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from recsys.log.protocol import Append
from serving.ingestion.disk_spool import _HEAD, DiskSpool, SpoolFile, Waiting

LARGE = 1 << 20
REAL_PWRITE = os.pwrite


def waiting(*numbers: int) -> list[Waiting]:
    return [("events", Append(n % 3, b"k", b"value %d" % n)) for n in numbers]


def spool_in(folder: Path, log_id: str = "log", most_bytes: int = LARGE) -> DiskSpool:
    return DiskSpool(folder, log_id, most_bytes)


def kill(spool: DiskSpool) -> None:
    """Acts as kill -9: the file stays as it is, the lock goes."""
    assert spool._own is not None
    os.close(spool._own._fd)


def drain(spool: DiskSpool, most: int = 2) -> list[Waiting]:
    found = []
    while batch := spool.peek(most):
        found += batch
        spool.mark_sent()
    return found


def test_what_was_put_first_comes_first_and_a_failed_batch_comes_again(tmp_path: Path) -> None:
    spool = spool_in(tmp_path)
    assert spool.append(waiting(0, 1, 2)) == 3 and spool.append(waiting(3)) == 1
    assert spool.peek(2) == spool.peek(2) == waiting(0, 1)
    assert drain(spool) == waiting(0, 1, 2, 3)
    assert spool.pending == 0
    spool.append(waiting(4))  # the file begins anew
    assert drain(spool) == waiting(4)
    spool.close()
    assert list(tmp_path.iterdir()) == []


def test_what_a_replica_left_is_sent_by_another_and_goes_on_where_it_was(tmp_path: Path) -> None:
    first = spool_in(tmp_path)
    first.append(waiting(0, 1, 2, 3))
    first.peek(2)
    first.mark_sent()
    first.peek(2)  # sent perhaps, and not noted: it is sent again
    kill(first)
    second = spool_in(tmp_path)
    second.append(waiting(9))
    second.adopt()
    second.adopt()
    assert drain(second) == waiting(2, 3, 9)
    second.close()
    assert list(tmp_path.iterdir()) == []


def test_the_file_of_one_who_lives_and_that_of_another_log_are_left_alone(tmp_path: Path) -> None:
    lives, foreign, third = (spool_in(tmp_path), spool_in(tmp_path, "another log"), spool_in(tmp_path))
    lives.append(waiting(0))
    foreign.append(waiting(1))
    kill(foreign)
    (tmp_path / "torn.kept").write_bytes(b"kept")  # killed while it was made
    third.adopt()
    assert third.pending == 0 and third.peek(5) == []
    assert drain(lives) == waiting(0)
    assert len(list(tmp_path.glob("*.kept"))) == 3


def test_a_file_is_bounded(tmp_path: Path) -> None:
    spool = spool_in(tmp_path, most_bytes=200)
    count = spool.append(waiting(*range(20)))
    assert 0 < count < 20 and spool.append(waiting(20)) == 0
    assert spool._own is not None and spool._own.path.stat().st_size <= 200
    assert drain(spool) == waiting(*range(count))
    assert spool.append(waiting(21)) == 1
    assert spool_in(tmp_path, most_bytes=0).append(waiting(0)) == 0


@pytest.mark.parametrize("damage", ["cut", "flipped", "length"])
def test_behind_damage_nothing_is_read_and_it_is_counted(tmp_path: Path, damage: str) -> None:
    spool = spool_in(tmp_path)
    spool.append(waiting(0, 1))
    assert spool._own is not None
    path, second = spool._own.path, spool._own.end
    spool.append(waiting(2, 3))
    kill(spool)
    data = bytearray(path.read_bytes())
    if damage == "cut":
        del data[second + 5 :]
    elif damage == "flipped":
        data[second + 12] ^= 1
    else:
        data[second : second + 4] = b"\xff" * 4
    path.write_bytes(data)
    after = spool_in(tmp_path)
    after.adopt()
    assert drain(after, most=5) == waiting(0, 1)
    assert after.torn == 1 and after.pending == 0
    assert not path.exists()


def test_a_full_disk_keeps_what_stands_and_takes_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = spool_in(tmp_path)
    spool.append(waiting(0))
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[: len(data) // 2], at))
    assert spool.append(waiting(1, 2)) == 0
    monkeypatch.setattr(os, "pwrite", real)
    assert spool.append(waiting(3)) == 1
    assert drain(spool) == waiting(0, 3)


def test_a_disk_without_room_for_a_head_leaves_no_file_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool, real = spool_in(tmp_path), os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:1]))
    assert spool.append(waiting(0)) == 0 and spool.pending == 0
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(os, "write", real)
    assert spool.append(waiting(1)) == 1 and drain(spool) == waiting(1)


def test_a_disk_that_takes_nothing_at_all_raises_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = spool_in(tmp_path)
    spool.append(waiting(0, 1, 2))
    for name in ("pwrite", "ftruncate"):
        monkeypatch.setattr(os, name, refused)
    assert spool.append(waiting(3)) == 0
    assert drain(spool) == waiting(0, 1, 2) and spool.pending == 0
    monkeypatch.undo()
    assert spool.append(waiting(4)) == 1 and drain(spool) == waiting(4)


def test_a_folder_that_cannot_be_made_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    spool = spool_in(tmp_path / "file")
    assert spool.append(waiting(0)) == 0 and spool.pending == 0
    spool.adopt()
    spool.close()
    assert SpoolFile.adopt(tmp_path / "nowhere.kept", "log") is None


STEPS = ("pwrite", "ftruncate", "pwrite")  # by which a file that is sent whole begins anew


def failing_at(step: int, how: Callable[..., int], patch: pytest.MonkeyPatch) -> None:
    """Makes one of STEPS fail, and all behind it."""
    calls = iter(range(len(STEPS)))

    def patched(real: Callable[..., int]) -> Callable[..., int]:
        return lambda *args: real(*args) if next(calls, step) < step else how(real, *args)

    for name in ("pwrite", "ftruncate"):
        patch.setattr(os, name, patched(getattr(os, name)))


def refused(*_: object, **__: object) -> int:
    raise OSError("no space")


def short(real: Callable[..., int], fd: int, data: bytes, at: int) -> int:
    return real(fd, data[:17], at)


def ended(*_: object) -> int:
    raise SystemExit


@pytest.mark.parametrize(
    ("step", "how", "again"),
    [(0, refused, [2]), (0, short, [2]), (1, refused, []), (2, refused, []), (2, short, [])],
)
def test_what_is_put_after_a_failure_to_begin_anew_is_found_by_who_comes_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, how: Callable[..., int], again: list[int]
) -> None:
    first, second = spool_in(tmp_path), spool_in(tmp_path)
    first.append(waiting(0, 1, 2))
    first.peek(2)
    first.mark_sent()
    assert first.peek(2) == waiting(2)
    with monkeypatch.context() as patch:
        failing_at(step, how, patch)
        first.mark_sent()
        assert first.pending == 0
        assert first._own is not None
        patch.setattr(first._own, "write_progress", lambda: None, raising=False)  # nor later
        patch.setattr(os, "pwrite", REAL_PWRITE)
        assert first.append(waiting(4)) == 1
    kill(first)
    second.adopt()
    assert drain(second) == waiting(*again, 4) and second.torn == 0
    second.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("step", "again"), [(0, [2]), (1, []), (2, [])])
def test_one_that_is_killed_while_it_begins_anew_repeats_one_batch_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, again: list[int]
) -> None:
    first, second = spool_in(tmp_path), spool_in(tmp_path)
    first.append(waiting(0, 1, 2))
    first.peek(2)
    first.mark_sent()
    first.peek(2)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        failing_at(step, ended, patch)
        first.mark_sent()
    kill(first)
    second.adopt()
    assert second.pending >= 0 and drain(second) == waiting(*again)
    assert list(tmp_path.iterdir()) == []


def test_a_head_that_points_behind_the_end_means_all_of_the_file(tmp_path: Path) -> None:
    first, second = spool_in(tmp_path), spool_in(tmp_path)
    first.append(waiting(0, 1))
    assert first._own is not None
    os.pwrite(first._own._fd, _HEAD.pack(b"kept-1\n\0", first._own._log, 10_000), 0)
    kill(first)
    second.adopt()
    assert drain(second) == waiting(0, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_full_file_that_could_not_begin_anew_does_so_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = spool_in(tmp_path, most_bytes=100)
    count = spool.append(waiting(*range(20)))
    spool.peek(20)
    with monkeypatch.context() as patch:
        failing_at(0, refused, patch)
        spool.mark_sent()
    assert spool.pending == 0 and spool.append(waiting(*range(20))) == count
    assert drain(spool) == waiting(*range(count))


def test_a_file_that_cannot_be_removed_is_let_go_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = spool_in(tmp_path)
    spool.append(waiting(0))
    drain(spool)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refused)
        spool.close()
    (path,) = tmp_path.iterdir()
    after = SpoolFile.adopt(path, "log")
    assert after is not None and after.pending == 0
    after.close()
    assert list(tmp_path.iterdir()) == []
