import os
from pathlib import Path

import pytest

from recsys.log.protocol import LogLost
from recsys.process.part_snapshot import PartState

OFFSETS = {"events": {0: 5, 3: 9}}


def test_nothing_was_saved(tmp_path: Path) -> None:
    assert PartState(tmp_path, "fold").load("log") is None


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    PartState(tmp_path, "fold").save("log", OFFSETS, b"\x00state")
    state = PartState(tmp_path, "fold")
    saved = state.load("log")
    assert saved is not None and state.note == ""
    assert (saved.log_id, saved.offsets, saved.blob) == ("log", OFFSETS, b"\x00state")
    assert PartState(tmp_path, "other").load("log") is None


def test_the_last_one_counts_and_nothing_piles_up(tmp_path: Path) -> None:
    state = PartState(tmp_path, "fold")
    for i in range(5):
        state.save("log", OFFSETS, b"%d" % i)
    saved = PartState(tmp_path, "fold").load("log")
    assert saved is not None and saved.blob == b"4"
    assert sorted(os.listdir(state.folder)) == ["state.msgpack", "state.previous.msgpack"]


def test_what_a_full_disk_cut_off_is_gone_with_the_next_save_of_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, sync = PartState(tmp_path, "fold"), os.fsync

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    for process in range(3):
        monkeypatch.setattr(os, "getpid", lambda process=process: process)
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            state.save("log", OFFSETS, b"of somebody who is erased later")
    monkeypatch.setattr(os, "fsync", sync)
    state.save("log", OFFSETS, b"state")
    assert os.listdir(state.folder) == ["state.msgpack"]


@pytest.mark.parametrize("harm", ["cut", "flip", "empty"])
def test_a_broken_snapshot_gives_the_one_before_and_says_so(tmp_path: Path, harm: str) -> None:
    state = PartState(tmp_path, "fold")
    state.save("log", OFFSETS, b"old")
    state.save("log", {"events": {0: 6}}, b"new")
    path = state.folder / "state.msgpack"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes({"cut": raw[:-3], "flip": raw, "empty": b""}[harm])
    saved = state.load("log")
    assert saved is not None and (saved.offsets, saved.blob) == (OFFSETS, b"old")
    assert "state.msgpack can't be read" in state.note and "SHA-256" in state.note
    assert (state.folder / "state.broken.msgpack").exists()
    PartState(tmp_path, "another").drop_broken()
    assert sorted(os.listdir(state.folder)) == ["state.previous.msgpack"]
    state.save("log", OFFSETS, b"newer")
    assert state.load("log") is not None and state.note == ""
    path.unlink()
    before = state.load("log")
    assert before is not None and before.blob == b"old"  # the good one wasn't overwritten by the broken


def test_files_of_another_process_are_read_and_stay_as_they_are(tmp_path: Path) -> None:
    state = PartState(tmp_path, "fold")
    assert state.load("log", move=False) is None
    for blob in (b"old", b"new"):
        state.save("log", OFFSETS, blob)
    (state.folder / "state.msgpack").write_bytes(b"broken")
    before = {path: path.read_bytes() for path in state.folder.iterdir()}
    saved = state.load("log", move=False)
    assert saved is not None and saved.blob == b"old" and state.note == ""
    assert {path: path.read_bytes() for path in state.folder.iterdir()} == before
    (state.folder / "state.previous.msgpack").write_bytes(b"broken")
    with pytest.raises(ValueError, match="can't be read"):
        state.load("log", move=False)


def test_where_both_are_broken_it_says_what_to_do(tmp_path: Path) -> None:
    state = PartState(tmp_path, "fold")
    for blob in (b"1", b"2"):
        state.save("log", OFFSETS, blob)
    for path in state.folder.iterdir():
        path.write_bytes(b"no")
    with pytest.raises(ValueError, match=f"remove {state.folder}"):
        state.load("log")


@pytest.mark.parametrize("crash_at", [1, 2])
def test_a_crash_while_saving_leaves_a_whole_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_at: int
) -> None:
    state = PartState(tmp_path, "fold")
    state.save("log", OFFSETS, b"first")
    state.save("log", OFFSETS, b"second")
    calls = []
    replace = os.replace

    def crash(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == crash_at:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        state.save("log", OFFSETS, b"third")
    monkeypatch.undo()
    saved = PartState(tmp_path, "fold").load("log")
    assert saved is not None and saved.blob == b"second"
    state.save("log", OFFSETS, b"third")
    saved = state.load("log")
    assert saved is not None and saved.blob == b"third"


def test_a_state_of_another_log_is_refused(tmp_path: Path) -> None:
    state = PartState(tmp_path, "fold")
    state.save("log", OFFSETS, b"")
    with pytest.raises(LogLost, match="from log log, this one is other"):
        state.load("other")


def test_saving_says_what_to_hold_so_that_the_one_before_stays_of_use(tmp_path: Path) -> None:
    state = PartState(tmp_path, "fold")
    assert state.save("log", {"t": {0: 1}}, b"") == {"t": {0: 1}}
    assert state.save("log", {"t": {0: 2}}, b"") == {"t": {0: 1}}
    again = PartState(tmp_path, "fold")
    again.load("log")
    assert again.save("log", {"t": {0: 3}}, b"") == {"t": {0: 2}}
