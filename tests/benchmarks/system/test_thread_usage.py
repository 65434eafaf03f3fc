"""Processor time and wake-ups of processes: of this one, and of files as ``/proc`` has them."""

import os
import threading
import time
from pathlib import Path

import pytest

from benchmarks.system.thread_usage import (
    ProcessTimes,
    read_processes,
    total,
    usage_by,
    voluntary_switches,
)

_WAITS = 100
_STATUS = "Name:\tx\nvoluntary_ctxt_switches:\t12\nnonvoluntary_ctxt_switches:\t3\n"


def _write_process(proc: Path, pid: int, state: str = "S", threads: tuple[int, ...] = ()) -> None:
    """Files of a process whose name has spaces and a bracket, with 1.5 s of processor time."""
    ticks = os.sysconf("SC_CLK_TCK")
    fields = [state, *"0" * 10, str(ticks), str(ticks // 2), *"0" * 20]
    (proc / str(pid) / "task").mkdir(parents=True)
    (proc / str(pid) / "stat").write_text(f"{pid} (a ) b) {' '.join(fields)}\n")
    for thread in threads:
        (proc / str(pid) / "task" / str(thread)).mkdir()
        (proc / str(pid) / "task" / str(thread) / "status").write_text(_STATUS)


def test_a_group_uses_what_its_processes_used_between_the_readings() -> None:
    before = {1: ProcessTimes(5.0, {1: 100, 3: 900}), 9: ProcessTimes(7.0, {9: 7})}
    after = {
        1: ProcessTimes(6.5, {1: 120, 2: 5}),  # a thread began in between, and one ended
        2: ProcessTimes(0.25, {2: 10}),  # began in between
    }
    groups = usage_by({1: "a", 2: "b", 9: "gone"}.__getitem__, before, after, 10.0)
    assert set(groups) == {"a", "b"}
    assert groups["a"].cores == pytest.approx(0.15) and groups["b"].cores == pytest.approx(0.025)
    assert groups["a"].wakeups_per_s == pytest.approx(2.5)
    assert groups["a"].busiest_wakeups_per_s == pytest.approx(2.0)
    assert (groups["a"].threads, groups["a"].processes) == (2, 1)
    everything = total(groups.values())
    assert everything.cores == pytest.approx(0.175) and everything.threads == 3
    assert everything.processes == 2 and everything.busiest_wakeups_per_s == pytest.approx(2.0)


def test_processes_with_one_name_are_one_group() -> None:
    after = {1: ProcessTimes(1.0, {1: 1}), 2: ProcessTimes(1.0, {2: 1})}
    groups = usage_by(lambda pid: "shard", {}, after, 2.0)
    assert groups["shard"].processes == 2 and groups["shard"].cores == pytest.approx(1.0)


def test_a_thread_that_waits_often_shows_and_one_that_waits_once_does_not() -> None:
    never, waited, read = threading.Event(), threading.Event(), threading.Event()

    def wait_often() -> None:
        for _ in range(_WAITS):
            never.wait(0.001)
        waited.set()
        read.wait()

    often, once = threading.Thread(target=wait_often), threading.Thread(target=read.wait)
    before = read_processes([os.getpid()])
    often.start()
    once.start()
    try:
        assert waited.wait(60)
        after = read_processes([os.getpid(), 2**30])
    finally:
        read.set()
        often.join()
        once.join()
    assert list(after) == [os.getpid()]
    wakeups = after[os.getpid()].wakeups
    assert often.native_id is not None and once.native_id is not None
    assert wakeups[often.native_id] >= _WAITS / 2 > wakeups[once.native_id]
    assert (
        usage_by(lambda pid: "self", before, after, 1.0)["self"].busiest_wakeups_per_s >= _WAITS / 2
    )


def test_processor_time_of_a_thread_that_ended_counts() -> None:
    used = []

    def compute() -> None:
        until = time.thread_time() + 0.2
        while time.thread_time() < until:
            pass
        used.append(time.thread_time())

    before = read_processes([os.getpid()])
    thread = threading.Thread(target=compute)
    thread.start()
    thread.join()
    after = read_processes([os.getpid()])
    ticks_s = 2 / os.sysconf("SC_CLK_TCK")  # both readings are in whole ticks
    assert after[os.getpid()].cpu_s - before[os.getpid()].cpu_s >= used[0] - ticks_s


def test_files_of_a_process_are_read(tmp_path: Path) -> None:
    _write_process(tmp_path, 7, threads=(7, 8))
    _write_process(tmp_path, 9, state="Z")  # nobody has waited for it
    reading = read_processes([7, 9, 10], tmp_path)
    assert reading == {7: ProcessTimes(1.5, {7: 12, 8: 12}), 9: ProcessTimes(1.5, {})}


def test_a_running_process_without_threads_is_an_error(tmp_path: Path) -> None:
    _write_process(tmp_path, 7, threads=(7,))
    _write_process(tmp_path, 8)
    with pytest.raises(
        RuntimeError, match="no thread of a running process could be read in .*/8/task"
    ):
        read_processes([7, 8], tmp_path)


def test_a_reading_without_any_process_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="expected those of a running system"):
        read_processes([7], tmp_path)


def test_a_status_without_the_number_is_an_error() -> None:
    assert voluntary_switches(_STATUS) == 12
    with pytest.raises(ValueError, match="expected Linux"):
        voluntary_switches("nonvoluntary_ctxt_switches:\t3")
