"""What learns steps back: its process, and its session where the system shares processors between those."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from recsys.process import process_priority as niceness

ALONE = "import os; from recsys.process.process_priority import {0}; {1}; print(os.nice(0))"


def nice_after(call: str, name: str, **more: bool) -> int:
    words = [sys.executable, "-c", ALONE.format(name, call)]
    return int(subprocess.run(words, capture_output=True, text=True, check=True, **more).stdout)


def test_a_process_steps_back_once() -> None:
    before = nice_after("lower_priority(0)", "lower_priority")
    assert nice_after("lower_priority(7); lower_priority(7); lower_priority(3)", "lower_priority") == max(
        before, 7
    )


def test_a_session_is_set_by_its_leader_again_where_it_was_too_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, refusals = tmp_path / "autogroup", [errno.EAGAIN, errno.EAGAIN]
    monkeypatch.setattr(niceness, "lower_priority", lambda nice: None)
    monkeypatch.setattr(niceness, "_AGAIN_S", 0.0)
    monkeypatch.setattr("os.getsid", lambda pid: 1)
    monkeypatch.setattr("os.getpid", lambda: 2)
    assert not niceness.lower_session_priority(5, file)  # there is none
    file.write_text("")
    assert not niceness.lower_session_priority(5, file)  # it isn't ours
    monkeypatch.setattr("os.getpid", lambda: 1)
    write = Path.write_text

    def soon(path: Path, text: str) -> int:
        if refusals:
            raise OSError(refusals.pop(), "too soon")
        return write(path, text)

    monkeypatch.setattr(Path, "write_text", soon)
    assert niceness.lower_session_priority(5, file) and file.read_text() == "5"
    assert niceness.set_session_priority(0, file) and file.read_text() == "0"  # and up again
    refusals.append(errno.EPERM)
    assert not niceness.lower_session_priority(5, file)
