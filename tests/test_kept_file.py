"""What waits on disk for the log: order, bounds, damage, and whose it is."""

import os
from pathlib import Path

import pytest

from recsys.log import Append
from serving.kept_file import Kept, KeptFile, Waiting

LARGE = 1 << 20


def waiting(*numbers: int) -> list[Waiting]:
    return [("events", Append(n % 3, b"k", b"value %d" % n)) for n in numbers]


def kept(folder: Path, log_id: str = "log", most_bytes: int = LARGE) -> Kept:
    return Kept(folder, log_id, most_bytes)


def killed(its: Kept) -> None:
    """As by kill -9: the file stays as it is, the lock goes."""
    assert its._own is not None
    os.close(its._own._fd)


def drained(its: Kept, most: int = 2) -> list[Waiting]:
    found = []
    while batch := its.peek(most):
        found += batch
        its.sent_peeked()
    return found


def test_what_was_put_first_comes_first_and_a_failed_batch_comes_again(tmp_path: Path) -> None:
    its = kept(tmp_path)
    assert its.put(waiting(0, 1, 2)) == 3 and its.put(waiting(3)) == 1
    assert its.peek(2) == its.peek(2) == waiting(0, 1)
    assert drained(its) == waiting(0, 1, 2, 3)
    assert its.pending == 0
    its.put(waiting(4))  # the file begins anew
    assert drained(its) == waiting(4)
    its.close()
    assert list(tmp_path.iterdir()) == []


def test_what_a_replica_left_is_sent_by_another_and_goes_on_where_it_was(tmp_path: Path) -> None:
    first = kept(tmp_path)
    first.put(waiting(0, 1, 2, 3))
    first.peek(2)
    first.sent_peeked()
    first.peek(2)  # sent perhaps, and not noted: it is sent again
    killed(first)
    second = kept(tmp_path)
    second.put(waiting(9))
    second.adopt()
    second.adopt()
    assert drained(second) == waiting(2, 3, 9)
    second.close()
    assert list(tmp_path.iterdir()) == []


def test_the_file_of_one_who_lives_and_that_of_another_log_are_left_alone(tmp_path: Path) -> None:
    lives, foreign, third = kept(tmp_path), kept(tmp_path, "another log"), kept(tmp_path)
    lives.put(waiting(0))
    foreign.put(waiting(1))
    killed(foreign)
    (tmp_path / "torn.kept").write_bytes(b"kept")  # killed while it was made
    third.adopt()
    assert third.pending == 0 and third.peek(5) == []
    assert drained(lives) == waiting(0)
    assert len(list(tmp_path.glob("*.kept"))) == 3


def test_a_file_is_bounded(tmp_path: Path) -> None:
    its = kept(tmp_path, most_bytes=200)
    count = its.put(waiting(*range(20)))
    assert 0 < count < 20 and its.put(waiting(20)) == 0
    assert its._own is not None and its._own.path.stat().st_size <= 200
    assert drained(its) == waiting(*range(count))
    assert its.put(waiting(21)) == 1
    assert kept(tmp_path, most_bytes=0).put(waiting(0)) == 0


@pytest.mark.parametrize("damage", ["cut", "flipped", "length"])
def test_behind_damage_nothing_is_read_and_it_is_counted(tmp_path: Path, damage: str) -> None:
    its = kept(tmp_path)
    its.put(waiting(0, 1))
    assert its._own is not None
    path, second = its._own.path, its._own.end
    its.put(waiting(2, 3))
    killed(its)
    data = bytearray(path.read_bytes())
    if damage == "cut":
        del data[second + 5 :]
    elif damage == "flipped":
        data[second + 12] ^= 1
    else:
        data[second : second + 4] = b"\xff" * 4
    path.write_bytes(data)
    after = kept(tmp_path)
    after.adopt()
    assert drained(after, most=5) == waiting(0, 1)
    assert after.torn == 1 and after.pending == 0
    assert not path.exists()


def test_a_full_disk_keeps_what_stands_and_takes_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    its = kept(tmp_path)
    its.put(waiting(0))
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[: len(data) // 2], at))
    assert its.put(waiting(1, 2)) == 0
    monkeypatch.setattr(os, "pwrite", real)
    assert its.put(waiting(3)) == 1
    assert drained(its) == waiting(0, 3)


def test_a_disk_without_room_for_a_head_leaves_no_file_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    its, real = kept(tmp_path), os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:1]))
    assert its.put(waiting(0)) == 0 and its.pending == 0
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(os, "write", real)
    assert its.put(waiting(1)) == 1 and drained(its) == waiting(1)


def test_a_disk_that_takes_nothing_at_all_raises_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> int:
        raise OSError("no space")

    its = kept(tmp_path)
    its.put(waiting(0, 1, 2))
    for name in ("pwrite", "ftruncate"):
        monkeypatch.setattr(os, name, refused)
    assert its.put(waiting(3)) == 0
    assert drained(its) == waiting(0, 1, 2) and its.pending == 0
    monkeypatch.undo()
    assert its.put(waiting(4)) == 1 and drained(its) == waiting(4)


def test_a_folder_that_cannot_be_made_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    its = kept(tmp_path / "file")
    assert its.put(waiting(0)) == 0 and its.pending == 0
    its.adopt()
    its.close()
    assert KeptFile.left(tmp_path / "nowhere.kept", "log") is None
