"""The supervisor's loop while system calls fail: disk full, disk broken, no file descriptors.

Processes, clock and signals are fakes; files are real. System calls are counted, so that any one can fail.
"""

import contextlib
import errno
import io
import os
import signal
from types import SimpleNamespace

import msgspec
import pytest

from recsys.clock import machine_ms
from recsys.process.part_process import Beat
from recsys.process.slot_file import SlotFile
from recsys.process.space_file import read_space
from runtime.supervision import processes, run_file, space_watch, supervisor_loop
from runtime.supervision.processes import Identity
from runtime.supervision.supervisor import Part, State
from runtime.supervision.supervisor_loop import Runner
from tests.support.plan_config import config_in

PARTS = [
    Part("log", "", once=True),
    Part("store", "", needs=("log",)),
    Part("fold", "", needs=("store",)),
    Part("serve", "", needs=("store",), bound=("fold",)),
]
KILL_AT_S, OUTAGE_S, RECOVERY_S = 3.0, 8.0, 30.0
ERRORS = [errno.ENOSPC, errno.EIO, errno.EMFILE]


class Machine:
    """Fake processes, clock and signals. Each process of a part starts a second one in its session."""

    def __init__(self, monkeypatch, tmp_path):
        self.now, self.live, self.pids = 0.0, {}, iter(range(10**8, 2 * 10**8, 2))
        self.calls, self.fails, self.error, self.until_s = 0, lambda: False, 0, 0.0
        self.at = []
        clock = SimpleNamespace(
            monotonic=lambda: self.now,
            sleep=self.sleep,
            CLOCK_BOOTTIME=0,
            clock_gettime=lambda _: 1e9 + self.now,
        )
        monkeypatch.setattr(supervisor_loop, "time", clock)
        monkeypatch.setattr(supervisor_loop, "machine_ms", lambda: int(1000 * (1e9 + self.now)))
        monkeypatch.setattr(processes, "time", clock)
        monkeypatch.setattr(space_watch, "time", clock)
        monkeypatch.setattr(supervisor_loop, "table", lambda *_: PARTS)
        monkeypatch.setattr(signal, "signal", lambda *_: None)
        monkeypatch.setattr(os, "open", self.failing(os.open))
        monkeypatch.setattr(os, "pwrite", self.failing(os.pwrite))
        monkeypatch.setattr(os, "replace", self.failing(os.replace))
        monkeypatch.setattr(io, "open", self.failing(io.open))
        monkeypatch.setattr(processes.subprocess, "Popen", self.failing(self.start))
        monkeypatch.setattr(processes, "identify", self.failing(lambda pid: Identity(pid, 1e9)))
        monkeypatch.setattr(processes, "parts_of", self.failing(self.parts_of))
        monkeypatch.setattr(supervisor_loop, "listening", self.failing(lambda leaders: {}))
        monkeypatch.setattr(os, "kill", self.kill)
        plan = SimpleNamespace(config_digest="")
        monkeypatch.setattr(supervisor_loop, "part_environment", lambda config, plan: {})
        self.runner = Runner(config_in(tmp_path / "state"), plan, self.failing(lambda *_: None))
        self.heartbeats = {
            part.name: SlotFile(tmp_path / "state" / "run" / f"{part.name}.json") for part in PARTS
        }

    def failing(self, act):
        def call(*arguments, **named):
            self.calls += 1
            if self.fails():
                raise OSError(self.error, os.strerror(self.error))
            return act(*arguments, **named)

        return call

    def start(self, command, **_):
        name, pid = command[3], next(self.pids)
        process = SimpleNamespace(pid=pid, part=name, status=None)
        process.poll = lambda: process.status
        process.terminate = lambda: self.end(process, -15)
        self.live |= {pid: process, pid + 1: process}
        return process

    def end(self, process, status):
        if process.status is None:
            process.status = status
            del self.live[process.pid]

    def parts_of(self, leaders):
        pids = {leader.pid: name for name, leader in leaders.items()}
        return {pid: pids[pid - pid % 2] for pid in self.live if pid - pid % 2 in pids}

    def kill(self, pid, number):
        process = self.live[pid]
        if pid == process.pid:
            self.end(process, -number)
        else:
            del self.live[pid]

    def die(self, name):
        for process in list(self.live.values()):
            if process.part == name:
                self.end(process, -9)

    def sleep(self, seconds):
        """One turn of the world: heartbeats of the parts, events of the test."""
        self.now += seconds
        with self.without_faults():
            for process in {id(each): each for each in self.live.values()}.values():
                if process.part == "log":
                    self.end(process, 0)
                elif process.status is None:
                    beat = Beat(part=process.part, pid=process.pid, started_ms=0, state="ready")
                    self.heartbeats[process.part].write(msgspec.json.encode(beat))
            self.check_known()
            for at_s, act in [each for each in self.at if each[0] <= self.now]:
                self.at.remove((at_s, act))
                act()

    @contextlib.contextmanager
    def without_faults(self):
        fails, calls, self.fails = self.fails, self.calls, lambda: False
        yield
        self.fails, self.calls = fails, calls

    def check_known(self):
        """Every live process belongs to a process that the supervisor watches."""
        watched = self.runner._supervisor.watched.values()
        known = {w.process.pid for w in watched if w.process is not None}
        assert {pid - pid % 2 for pid in self.live} <= known

    def run(self):
        """Runs until ``RECOVERY_S`` after the last fault; returns the states then."""
        states = []

        def judge():
            states.append({name: w.state for name, w in self.runner._supervisor.watched.items()})
            written = run_file.read(self.runner._config.state)
            assert written.time_ms == pytest.approx(1000 * (1e9 + self.now), abs=1500)
            assert written.ready and self.runner._supervisor.ready
            assert read_space(self.runner._config.state, machine_ms()) is not None
            self.runner.stop()

        self.at += [(KILL_AT_S, lambda: self.die("fold")), (self.until_s + RECOVERY_S, judge)]
        self.runner.run()
        assert not self.live and self.runner._supervisor.stopped
        return states[0]


READY = {"log": State.DONE, "store": State.READY, "fold": State.READY, "serve": State.READY}


def calls_until(monkeypatch, tmp_path, until_s):
    with monkeypatch.context() as patch:
        machine, calls = Machine(patch, tmp_path / "none"), []
        machine.until_s = until_s
        machine.at.append((until_s, lambda: calls.append(machine.calls)))
        first = machine.calls
        assert machine.run() == READY
    return range(first, calls[0])


def check(monkeypatch, tmp_path, stride):
    """Every ``stride``-th call of the start, of a crash and of the restart fails: once, and for a while."""
    calls = calls_until(monkeypatch, tmp_path, KILL_AT_S + 1.0)
    assert len(calls) > 60
    for n in calls[::stride]:
        for outage in (False, True):
            folder = tmp_path / f"{n}-{outage}"
            with monkeypatch.context() as patch:
                machine = Machine(patch, folder)
                machine.error, machine.until_s = ERRORS[n % 3], KILL_AT_S + OUTAGE_S

                def fails(machine=machine, n=n, outage=outage):
                    during = outage and machine.calls > n and machine.now < machine.until_s
                    return machine.calls == n + 1 or during

                machine.fails = fails
                assert machine.run() == READY, (n, outage, os.strerror(machine.error))


def test_some_failing_calls_end_no_loop_and_lose_no_process(monkeypatch, tmp_path):
    check(monkeypatch, tmp_path, 17)


@pytest.mark.slow
def test_any_failing_call_ends_no_loop_and_loses_no_process(monkeypatch, tmp_path):
    check(monkeypatch, tmp_path, 1)
