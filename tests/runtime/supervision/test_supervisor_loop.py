"""The supervisor with real processes: started, killed, known again and ended."""

import contextlib
import gc
import os
import resource
import signal
import subprocess
import sys
import time

import msgspec
import psutil
import pytest

from recsys.config.clock_config import ClockConfig
from recsys.process.clock_file import clock_of, start_clock
from recsys.process.part_process import read_beat
from runtime.supervision import run_file, supervisor_loop
from runtime.supervision.launch_plan import resolve
from runtime.supervision.processes import (
    STATE,
    Child,
    Identity,
    Socket,
    alive,
    identify,
    kill_session,
    listening,
    members,
)
from runtime.supervision.supervisor import Part
from runtime.supervision.supervisor_loop import Runner, part_environment
from tests.support.plan_config import config_in, seen_of

FAKE = """
import os, signal, subprocess, sys, time

def good(stop):
    while not stop.wait(0.02):
        stop.heartbeat.add("events")

other = good

def once(stop):
    pass

def flaky(stop):
    while not stop.wait(0.02):
        if stop.heartbeat.now().time_ms - stop.heartbeat.now().started_ms > 100:
            raise ValueError("no luck")

def stubborn(stop):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import signal, time; "
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"], process_group=0)
    stop.heartbeat.gauge("child", child.pid)
    stop.is_set()
    stop.heartbeat.write()
    time.sleep(600)

if __name__ == "__main__":
    from recsys.process.part_process import run_parts
    names, state = sys.argv[1:]
    sys.exit(run_parts({name: globals()[name] for name in names.split(",")}, state))
"""


@pytest.fixture
def make_runner(tmp_path, monkeypatch):
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    fake = tmp_path / "fake.py"
    fake.write_text(FAKE)

    def make(parts, show, state=tmp_path / "state", config=None):
        config, plan = resolve(config or config_in(state))
        monkeypatch.setattr(supervisor_loop, "table", lambda *_: parts)
        command = [sys.executable, str(fake)]
        monkeypatch.setattr(supervisor_loop, "part_command", lambda *words: [*command, *words])
        failures = []

        def stop_at_failure(running, changes):
            try:
                show(running, changes)
            except Exception as error:  # the loop itself would go on
                failures.append(error)
                runner.stop()

        runner, run = Runner(config, plan, stop_at_failure), Runner.run

        def run_and_raise(self):
            run(self)
            if failures:
                raise failures[0]

        monkeypatch.setattr(Runner, "run", run_and_raise)
        return runner

    yield make
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_port_beyond_loopback_is_logged_once(make_runner, monkeypatch, caplog):
    runner = make_runner([], lambda *_: None)
    for port in (8000, 8000, 8001):
        sockets = [Socket(port, "0.0.0.0", "serve"), Socket(9, "127.0.0.1", "serve")]
        monkeypatch.setattr(supervisor_loop, "listening", lambda _, sockets=sockets: {"x": sockets})
        runner._scan_ports()
    assert [record.port for record in caplog.records] == [8000, 8001]


@pytest.mark.slow
def test_real_parts_start_die_come_back_and_end(make_runner):
    parts = [Part("once", "", once=True), Part("good", "", needs=("once",))]
    killed, ended = [], []

    def show(running, changes):
        good = seen_of(running, "good")
        if running.ready and not killed:
            killed.append(good.process)
            os.kill(good.process.pid, signal.SIGKILL)
        elif running.ready and good.restarts:
            ended.append(good)
            runner.stop()

    runner = make_runner(parts, show)
    runner.run()
    assert ended[0].last_exit == -9 and ended[0].process.pid != killed[0].pid
    assert not alive(ended[0].process)


@pytest.mark.slow
def test_parts_of_one_process_die_and_come_back_together(make_runner):
    parts = [Part("good", "", shares="both"), Part("other", "", shares="both"), Part("flaky", "")]
    before, after = [], []

    def show(running, changes):
        good, other = seen_of(running, "good"), seen_of(running, "other")
        is_ready = good.state == other.state == "ready"
        if is_ready and not before:
            before.append(good.process)
            assert good.process == other.process != seen_of(running, "flaky").process
            os.kill(good.process.pid, signal.SIGKILL)
        elif is_ready and good.restarts and other.restarts:
            after.append((good, other))
            runner.stop()

    runner = make_runner(parts, show)
    runner.run()
    good, other = after[0]
    assert good.process == other.process != before[0]
    assert good.last_exit == other.last_exit == -9 and not alive(good.process)


@pytest.mark.slow
def test_restarts_of_one_part_of_a_process_are_counted(make_runner):
    counts = []

    def show(running, changes):
        good, flaky = seen_of(running, "good"), seen_of(running, "flaky")
        if flaky.restarts >= 3 and flaky.state == "backoff":
            counts.append((flaky, good))
            runner.stop()

    runner = make_runner([Part("good", "", shares="both"), Part("flaky", "", shares="both")], show)
    runner.run()
    flaky, good = counts[0]
    assert flaky.reason == "ValueError: no luck"
    assert (good.state, good.restarts, good.process) == ("ready", 0, flaky.process)


@pytest.mark.slow
def test_a_failure_is_told_and_delays_grow(make_runner, tmp_path):
    from runtime.reports.status_table import note

    notes = []

    def show(running, changes):
        flaky = seen_of(running, "flaky")
        if flaky.state == "backoff" and flaky.restarts == 2:
            notes.append(note(flaky, tmp_path / "state"))
            runner.stop()

    runner = make_runner([Part("flaky", "")], show)
    runner.run()
    assert "last exit 1" in notes[0] and "ValueError: no luck" in notes[0]


@pytest.mark.slow
def test_the_stubborn_is_killed_with_all_that_it_started_and_nothing_else(make_runner, tmp_path):
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    children = []

    def show(running, changes):
        if running.ready and not children:
            beat = read_beat(tmp_path / "state" / "run" / "stubborn.json")
            children.append(identify(int(beat.gauges["child"])))
            assert sorted(members(seen_of(running, "stubborn").process)) == sorted(
                [beat.pid, children[0].pid]
            )
            runner.stop()

    try:
        runner = make_runner([Part("stubborn", "", grace_s=0.3)], show)
        runner.run()
        assert not alive(children[0])
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_process_is_not_taken_for_another_of_its_id():
    me = identify(os.getpid())
    assert alive(me)
    other = msgspec.structs.replace(me, started=me.started - 60)
    assert not alive(other)
    leader = identify(os.getsid(0)) if psutil.pid_exists(os.getsid(0)) else None
    if leader is not None:
        assert os.getpid() in members(leader)
        assert members(msgspec.structs.replace(leader, started=leader.started + 60)) == []


def test_a_change_of_the_clock_makes_no_process_another(tmp_path, monkeypatch):
    sleeps = [sys.executable, "-c", "import time; time.sleep(600)"]
    child = Child(sleeps, os.environ, tmp_path / "out", tmp_path / "beat.json")
    try:
        now_s = psutil.boot_time()
        monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: now_s + 3600)
        assert alive(child.identity) and members(child.identity) == [child.pid]
        child.kill()
        assert child.exit_status() == -signal.SIGKILL and not alive(child.identity)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)


def test_records_of_another_boot_and_of_older_versions_name_no_other_process(monkeypatch):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)
    with child:
        its = identify(child.pid)
        other_boot = msgspec.structs.replace(its, boot="another")
        assert not alive(other_boot) and members(other_boot) == []
        text = {"pid": child.pid, "started": psutil.Process(child.pid).create_time()}
        older = msgspec.convert(text, Identity)
        assert alive(older) and members(older) == [child.pid]
        reused = msgspec.structs.replace(older, started=older.started - 60)
        assert not alive(reused) and members(reused) == []
        child.communicate(b"\n")


AWAY = """
import subprocess, sys, time, socket
from recsys.process.process_priority import begin_session
begin_session()
listener = socket.create_server(("127.0.0.1", 0))
if len(sys.argv) > 1:
    subprocess.Popen([sys.executable, "-c", sys.argv[1]])
time.sleep(600)
"""
PART = "import subprocess, sys; from runtime.supervision.processes import mark; mark(); " + (
    f"subprocess.Popen([sys.executable, '-c', {AWAY!r}, {AWAY!r}]).wait()"
)


def test_what_a_part_started_is_known_in_whatever_session_and_ends_with_it():
    """A process in a session of its own, and another that it started: the first ends before the part."""
    part = subprocess.Popen([sys.executable, "-c", PART], start_new_session=True)
    other = subprocess.Popen([sys.executable, "-c", AWAY], start_new_session=True)
    leader = identify(part.pid)
    try:
        until_s = time.monotonic() + 30
        began: list[int] = []
        while len(began) < 2 and time.monotonic() < until_s:
            time.sleep(0.02)
            its = [pid for pid in members(leader) if pid != part.pid]
            began = [pid for pid in its if os.getsid(pid) == pid]
        assert len(began) == 2 and other.pid not in members(leader)
        assert len(listening({"part": leader})["part"]) == 2
        older = msgspec.structs.replace(leader, started=leader.started - 60)
        assert not set(began) & set(members(older)), "of another process that had its id"
        os.kill(min(began), signal.SIGKILL)
        part.kill()
        part.wait()
        while min(began) in members(leader) and time.monotonic() < until_s:
            time.sleep(0.02)  # a kill takes a moment
        assert members(leader) == [max(began)]  # who started it has gone, and so has the leader
        kill_session(leader)
        assert members(leader) == [] and other.poll() is None
    finally:
        kill_session(leader)
        for process in (part, other):
            process.kill()
            process.wait()


def test_one_holds_the_state_folder(tmp_path):
    with run_file.lock(tmp_path), pytest.raises(run_file.AlreadyRuns), run_file.lock(tmp_path):
        pass
    with run_file.lock(tmp_path):
        pass


def test_parts_that_no_run_file_names_are_ended_by_the_next_start(tmp_path):
    """Their supervisor died before it could write. Parts of another folder are left alone."""
    sleeps = [sys.executable, "-c", "import time; time.sleep(600)"]
    folders = [str(tmp_path / name) for name in ("state", "other")]
    mine, other = [
        subprocess.Popen(sleeps, env={STATE: folder}, start_new_session=True) for folder in folders
    ]
    try:
        assert part_environment(*resolve(config_in(tmp_path / "state")))[STATE] == folders[0]
        with run_file.lock(tmp_path / "state"):
            assert run_file.end_leftovers(tmp_path / "state") == 1
        assert mine.wait(10) is not None and other.poll() is None
    finally:
        for process in (mine, other):
            process.kill()
            process.wait()


@pytest.mark.slow
def test_a_part_comes_back_once_there_are_files_again(make_runner):
    """The supervisor itself may open no file when the part dies."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    killed, states, taken = [], [], []

    def give_back():
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        while taken:
            os.close(taken.pop())

    def exhaust():
        gc.collect()  # what it closes would be free again
        resource.setrlimit(resource.RLIMIT_NOFILE, (psutil.Process().num_fds(), hard))
        with contextlib.suppress(OSError):  # numbers below the limit may be free
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))

    def show(running, changes):
        good = seen_of(running, "good")
        if killed:
            states.append(good.state)
            if len(states) == 20:
                give_back()
            if running.ready and good.restarts:
                runner.stop()
        elif running.ready:
            killed.append(good.process)
            exhaust()
            os.kill(good.process.pid, signal.SIGKILL)

    runner = make_runner([Part("good", "")], show)
    try:
        runner.run()
    finally:
        give_back()
    assert set(states[:20]) & {"unchecked", "backoff"} and "ready" in states[20:]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 512 KB, which only root can mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
def test_a_part_comes_back_while_the_disk_is_full(make_runner, small_disk):
    parts = [Part("good", ""), Part("flaky", "")]
    filler, seen = (small_disk / "filler").open("ab", buffering=0), []

    def show(running, changes):
        good, flaky = (seen_of(running, part.name) for part in parts)
        if not seen and good.state == "ready" and flaky.restarts:
            with contextlib.suppress(OSError):
                while filler.write(bytes(512)):
                    pass
            seen.append(good)
            os.kill(good.process.pid, signal.SIGKILL)
        elif seen and good.restarts and good.state == "ready" and flaky.restarts > 2:
            read = run_file.read(small_disk)
            assert seen_of(read, "good").process == good.process
            with pytest.raises(OSError):
                filler.write(b"x" * 4096)
            seen.append(good)
            runner.stop()

    runner = make_runner(parts, show, small_disk)
    runner.run()
    filler.close()
    assert len(seen) == 2 and not alive(seen[1].process)
    assert {part.state for part in run_file.read(small_disk).parts} == {"stopped"}


def test_event_time_passes_from_ready_to_the_end(make_runner, tmp_path, monkeypatch):
    config = config_in(tmp_path / "state", clock=ClockConfig("2020-01-01", 1e5))
    start_clock(config)
    clock, seen = clock_of(config), []

    def show(running, changes):
        seen.append((running.ready, clock() - config.clock.start_ms))
        if seen[-1][1] > 0 and sum(ready for ready, _ in seen) > 3:
            runner.stop()

    runner = make_runner([Part("good", "")], show, config=config)
    runner.run()
    assert {passed_ms for ready, passed_ms in seen if not ready and passed_ms == 0} == {0}
    ended_ms = clock()
    assert ended_ms > config.clock.start_ms
    time.sleep(0.01)
    assert clock() == ended_ms
