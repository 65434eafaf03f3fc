import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parameter_server.storage import wal as wals
from parameter_server.storage.wal import Wal, WalMismatch
from tests.support.simulation.bit_flips import with_flips


def filled(path, steps=5):
    wal = Wal(path, "me")
    for step in range(1, steps + 1):
        wal.append(step, bytes([step]) * (10 * step))
    return wal


def steps_of(wal, after=0):
    return [step for step, payload in wal.records(after) if payload == bytes([step]) * (10 * step)]


def test_what_was_appended_is_read_back(tmp_path):
    filled(tmp_path / "a.wal").close()
    wal = Wal(tmp_path / "a.wal", "me", sync=True)
    assert steps_of(wal) == [1, 2, 3, 4, 5] and wal.steps == (1, 5) and wal.cut_bytes == 0
    wal.append(6, bytes([6]) * 60)
    assert steps_of(wal, after=4) == [5, 6]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 300))
def test_a_torn_tail_is_cut_wherever_it_tore(tmp_path_factory, kept):
    path = tmp_path_factory.mktemp("wal") / "a.wal"
    filled(path).close()
    data = path.read_bytes()
    head = len(data) - sum(16 + 10 * step for step in range(1, 6))
    path.write_bytes(data[: head + min(kept, len(data) - head)])
    wal = Wal(path, "me")
    whole = steps_of(wal)
    assert whole == list(range(1, len(whole) + 1))
    assert wal.cut_bytes == kept - sum(16 + 10 * s for s in whole) or len(whole) == 5
    wal.append(len(whole) + 1, bytes([len(whole) + 1]) * (10 * (len(whole) + 1)))
    wal.close()
    assert steps_of(Wal(path, "me")) == list(range(1, len(whole) + 2))


@pytest.mark.parametrize("back", [1, 40, 90, 150])
def test_a_flipped_byte_ends_the_file(tmp_path, back):
    path = tmp_path / "a.wal"
    filled(path).close()
    data = bytearray(path.read_bytes())
    data[-back] ^= 1
    path.write_bytes(data)
    wal = Wal(path, "me")
    assert steps_of(wal) == list(range(1, wal.steps[1] + 1)) and wal.steps[1] < 5
    assert wal.cut_bytes >= back - 1
    in_the_last = back <= 16 + 50
    assert bool(wal.damaged) != in_the_last
    copies = [path.read_bytes() for path in tmp_path.glob("*.wal.damaged")]
    assert copies == ([] if in_the_last else [bytes(data)])


def test_truncation_keeps_the_rest(tmp_path):
    wal = filled(tmp_path / "a.wal")
    size = wal.nbytes
    wal.truncate_before(4)
    assert steps_of(wal) == [4, 5] and wal.nbytes < size
    wal.append(6, bytes([6]) * 60)
    wal.close()
    wal = Wal(tmp_path / "a.wal", "me")
    assert steps_of(wal) == [4, 5, 6]
    wal.truncate_before(99)
    wal.truncate_before(99)
    assert wal.steps is None and list(wal.records()) == []
    wal.append(7, b"")
    assert [step for step, _ in wal.records()] == [7]
    assert [path.name for path in tmp_path.iterdir()] == ["a.wal"]


def test_cleared_is_empty(tmp_path):
    wal = filled(tmp_path / "a.wal")
    wal.clear()
    wal.close()
    assert Wal(tmp_path / "a.wal", "me").steps is None


def test_another_s_file_is_refused(tmp_path):
    filled(tmp_path / "a.wal").close()
    with pytest.raises(WalMismatch, match="belongs to another shard"):
        Wal(tmp_path / "a.wal", "you")


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    wal = filled(tmp_path / "a.wal", 2)

    class Full:
        """A file on a disk that fills up after a few bytes."""

        def __init__(self, file):
            self.file, self.left = file, 20

        def write(self, data):
            if not self.left:
                raise OSError(28, "No space left on device")
            size = min(self.left, len(data))
            self.left -= size
            return self.file.write(data[:size])

        def __getattr__(self, name):
            return getattr(self.file, name)

    wal._file = Full(wal._file)
    with pytest.raises(OSError, match="No space"):
        wal.append(3, bytes(100))
    wal._file = wal._file.file
    assert wal.path.stat().st_size == wal.nbytes
    wal.append(3, bytes([3]) * 30)
    wal.close()
    assert steps_of(Wal(tmp_path / "a.wal", "me")) == [1, 2, 3]


def test_a_failure_between_head_and_payload_leaves_nothing_behind(tmp_path):
    wal = filled(tmp_path / "a.wal", 2)

    class Second:
        """A file whose second write fails."""

        def __init__(self, file):
            self.file, self.writes = file, 0

        def write(self, data):
            self.writes += 1
            if self.writes == 2:
                raise OSError(28, "No space left on device")
            return self.file.write(data)

        def __getattr__(self, name):
            return getattr(self.file, name)

    wal._file = Second(wal._file)
    with pytest.raises(OSError, match="No space"):
        wal.append(3, bytes(100))
    assert wal.path.stat().st_size == wal.nbytes and wal.steps == (1, 2)
    wal.append(3, bytes([3]) * 30)  # the same object goes on
    assert steps_of(wal) == [1, 2, 3]
    wal.close()
    assert steps_of(Wal(tmp_path / "a.wal", "me")) == [1, 2, 3]


@pytest.mark.parametrize("steps", [0, 2])
def test_a_crash_between_head_and_payload_loses_that_record_alone(tmp_path, steps):
    path = tmp_path / "a.wal"
    filled(path, steps).close()
    whole = path.stat().st_size
    filled_to = Wal(path, "me")
    filled_to.append(steps + 1, bytes(100))
    filled_to.close()
    path.write_bytes(path.read_bytes()[:-100])
    wal = Wal(path, "me")
    assert steps_of(wal) == list(range(1, steps + 1))
    assert (wal.nbytes, path.stat().st_size, wal.cut_bytes, wal.damaged) == (whole, whole, 16, "")
    wal.append(steps + 1, bytes([steps + 1]) * (10 * (steps + 1)))
    wal.close()
    assert steps_of(Wal(path, "me")) == list(range(1, steps + 2))


def test_a_hole_is_not_written(tmp_path):
    wal = filled(tmp_path / "a.wal")
    for step in (5, 7):
        with pytest.raises(AssertionError, match="ends with step 5"):
            wal.append(step, b"")
    assert wal.steps == (1, 5)


@pytest.mark.parametrize("how", [lambda wal: wal.truncate_before(3), lambda wal: wal.clear()])
def test_a_folder_that_cannot_be_synced_leaves_the_file_that_has_the_name(tmp_path, monkeypatch, how):
    wal = filled(tmp_path / "a.wal", 4)

    def full(folder):
        raise OSError(5, "the disk is ill")

    monkeypatch.setattr(wals, "sync_folder", full)
    with pytest.raises(OSError, match="ill"):
        how(wal)
    monkeypatch.undo()
    wal.append(5, b"five")
    assert (5, b"five") in steps_with_payload(Wal(tmp_path / "a.wal", "me"))


def steps_with_payload(wal):
    return list(wal.records())


@pytest.mark.slow
def test_no_flip_goes_unseen(tmp_path):
    path = tmp_path / "a.wal"
    wal = Wal(path, "main/0/1-of-2", settings='{"lanes": 4}')
    steps = [(step, bytes([step]) * 300) for step in range(1, 41)]
    for step, payload in steps:
        wal.append(step, payload)
    wal.close()
    outcomes = set()
    for bit in with_flips(path, 1_000, seed=5):
        try:
            wal = Wal(path, "main/0/1-of-2", settings='{"lanes": 8}')
        except WalMismatch:
            outcomes.add("head")
            continue
        assert wal.settings == '{"lanes": 4}'
        read = list(wal.records())
        assert read == steps[: len(read)], bit
        assert len(read) < 40 and wal.cut_bytes > 0, bit
        assert bool(wal.damaged) == (len(read) < 39), bit
        outcomes.add("torn" if len(read) == 39 else "damaged")
        wal.close()
    assert outcomes == {"head", "torn", "damaged"}


def test_a_file_of_another_version_is_refused(tmp_path):
    path = tmp_path / "a.wal"
    path.write_bytes(b"recsys-wal-2\n\0\0\0" + struct.pack("<QQ", 2, 8) + b"mesettings")
    with pytest.raises(WalMismatch, match="expected b'recsys-wal-3.* another version; move it away"):
        Wal(path, "me")


def test_zeros_of_gradients_are_not_taken_for_records(monkeypatch):
    tiny = 0x4000 << 8  # the bits of a small float: from its second byte on, the length of a record
    sparse = struct.pack("<IIfII", tiny, 0, 0.001, 0, 0) * 2_000
    records = [wals._record_head(step, sparse) + sparse for step in range(1, 5)]
    head, checked = wals._head("me", ""), 0

    def counting_crc(step, payload, crc=wals._crc):
        nonlocal checked
        checked += len(payload)
        return crc(step, payload)

    monkeypatch.setattr(wals, "_crc", counting_crc)
    for number in (0, 1):  # the damaged record
        for place in (0, 2, 8, 5_000):  # in its length, its step and its payload
            data = bytearray(head + b"".join(records))
            data[len(head) + number * len(records[0]) + place] ^= 4
            checked = 0
            scan = wals.scan(bytes(data))
            assert scan.damaged and len(scan.offsets) == number
            assert checked < 2 * len(data)


def test_a_full_disk_leaves_no_half_of_a_new_file(tmp_path, monkeypatch):
    wal = filled(tmp_path / "a.wal")

    def full(handle):
        raise OSError(28, "no space")

    with monkeypatch.context() as patched:
        patched.setattr(wals.os, "fsync", full)
        with pytest.raises(OSError, match="no space"):
            wal.truncate_before(3)
    assert [path.name for path in tmp_path.iterdir()] == ["a.wal"]
    assert steps_of(wal) == [1, 2, 3, 4, 5]
