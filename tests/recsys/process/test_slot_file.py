"""A file that is rewritten in place: on a full disk, cut short anywhere, and by one writer after another."""

import errno
import os

import pytest

from recsys.process import slot_file
from recsys.process.slot_file import SlotFile, read_slots


@pytest.fixture
def path(tmp_path):
    return tmp_path / "up.json"


@pytest.fixture
def full_disk(monkeypatch):
    """Fails whatever needs space: new files and writes beyond a file's end."""
    pwrite = os.pwrite

    def no_space(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    def in_place(descriptor, data, at):
        if at + len(data) > os.fstat(descriptor).st_size:
            no_space()
        return pwrite(descriptor, data, at)

    def begin():
        monkeypatch.setattr(os, "pwrite", in_place)
        monkeypatch.setattr(os, "open", no_space)
        monkeypatch.setattr(os, "replace", no_space)

    return begin


def test_the_newest_content_is_read(path):
    file = SlotFile(path)
    for n in range(5):
        file.write(b"%d" % n)
        assert read_slots(path) == b"%d" % n
    assert path.stat().st_mode & 0o777 == 0o600
    second = SlotFile(path)
    for n in range(5, 8):
        second.write(b"%d" % n)
        assert read_slots(path) == b"%d" % n
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_full_disk_stops_no_writer_but_only_growth(path, full_disk):
    file = SlotFile(path)
    file.write(b"before")
    size = path.stat().st_size
    full_disk()
    for n in range(4):
        file.write(b"%d" * 20 % ((n,) * 20))
        assert read_slots(path) == (b"%d" % n) * 20
    with pytest.raises(OSError):
        file.write(bytes(size))
    assert read_slots(path) == b"3" * 20
    file.write(b"after")
    assert read_slots(path) == b"after" and path.stat().st_size == size
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_new_file_on_a_full_disk_is_an_error_and_leaves_nothing(path, full_disk):
    full_disk()
    with pytest.raises(OSError):
        SlotFile(path).write(b"1")
    assert list(path.parent.iterdir()) == []


def test_a_file_that_has_grown_is_read_and_continued(path):
    file = SlotFile(path)
    for size in (10, 5_000, 70, 30_000, 3):
        file.write(b"x" * size)
        assert read_slots(path) == b"x" * size
    SlotFile(path).write(b"y" * 50_000)
    assert read_slots(path) == b"y" * 50_000


def test_a_write_cut_at_any_byte_leaves_the_content_before_it(path, monkeypatch):
    pwrite = os.pwrite
    for cut in range(60):
        file = SlotFile(path)
        file.write(b"first, and long enough to be cut")
        file.write(b"second, of another length")

        def crash(descriptor, data, at, cut=cut):
            pwrite(descriptor, data[:cut], at)
            raise OSError(errno.EIO, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", crash)
            with pytest.raises(OSError):
                file.write(b"third and last")
        read = read_slots(path)
        assert read == (b"third and last" if cut >= 44 else b"second, of another length")
        file.write(b"fourth")
        assert read_slots(path) == b"fourth"


def test_one_flipped_bit_is_never_other_content(path):
    file = SlotFile(path)
    file.write(b"first")
    file.write(b"second")
    whole = path.read_bytes()
    written = [at for at, byte in enumerate(whole) if byte != 0x20]
    for at in written:
        for bit in range(8):
            data = bytearray(whole)
            data[at] ^= 1 << bit
            path.write_bytes(data)
            assert read_slots(path) in (b"first", b"second")


def test_a_reader_that_meets_two_torn_slots_reads_again(path, monkeypatch):
    SlotFile(path).write(b"content")
    whole, reads = path.read_bytes(), []

    def torn(data):
        reads.append(data)
        return [] if len(reads) < 3 else slots(data)

    slots = slot_file.slots_of
    monkeypatch.setattr(slot_file, "slots_of", torn)
    assert read_slots(path) == b"content" and reads == [whole] * 3


def test_other_files_are_read_whole_and_replaced(path):
    path.write_bytes(b'{"older": "version"}')
    assert read_slots(path) == b'{"older": "version"}'
    file = SlotFile(path)
    file.write(b"new")
    assert read_slots(path) == b"new"
    path.unlink()
    file.write(b"newer")
    assert read_slots(path) == b"newer"
    with pytest.raises(FileNotFoundError):
        read_slots(path.with_name("none"))
