import errno
import json
import logging
import math
import os
import signal
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest

from recsys.log.protocol import LogLost
from recsys.process import part_process
from recsys.process.part_process import EXIT_LOG_LOST, Heartbeat, Stop, read_beat, run_parts, write_atomically
from recsys.process.slot_file import SlotFile


@pytest.fixture
def quiet_root():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    signals = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    umask = os.umask(0o022)
    yield
    os.umask(umask)
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    for number, before in signals.items():
        signal.signal(number, before)


def test_asking_marks_ready_unless_starting():
    stop = Stop(Heartbeat("joiner"))
    assert not stop.is_set(starting=True) and not stop.wait(0, starting=True)
    assert stop.heartbeat.now().state == "starting"
    assert not stop.is_set()
    assert stop.heartbeat.now().state == "ready"
    stop.set()
    assert stop.is_set() and stop.wait(10)


def test_rates_follow_the_counters():
    now_ms = [100_000]
    heartbeat = Heartbeat("joiner", clock=lambda: now_ms[0])
    for _ in range(60):
        now_ms[0] += 1_000
        heartbeat.add("events", 50)
        beat = heartbeat.now()
    assert beat.counters == {"events": 3000}
    assert beat.rates["events"] == pytest.approx(50, rel=1e-3)
    for _ in range(60):
        now_ms[0] += 1_000
        beat = heartbeat.now()
    assert beat.rates["events"] == pytest.approx(0, abs=0.1)


def test_gauges_that_have_nothing_more_to_say_leave():
    beat = Heartbeat("p")
    for name in ("cpu_s", "panel_auc.1h", "panel_auc.1d"):
        beat.gauge(name, 1.0)
    beat.replace_gauges("panel", {"panel_auc.1d": 0.5})
    assert beat.now().gauges == {"cpu_s": 1.0, "panel_auc.1d": 0.5}


def test_gauges_that_are_not_finite_are_left_out(tmp_path: Path):
    heartbeat = Heartbeat("trainer", tmp_path / "trainer.json")
    heartbeat.gauge("step", 7)
    heartbeat.gauge("loss.like", 0.5)
    heartbeat.gauge("loss.like", math.nan)
    heartbeat.replace_gauges("panel", {"panel_auc.1h": 0.5, "panel_auc.1d": math.inf})
    heartbeat.write()
    beat = read_beat(tmp_path / "trainer.json")
    assert beat is not None and beat.gauges == {"step": 7, "panel_auc.1h": 0.5}


def test_what_failed_is_not_ready_again():
    heartbeat = Heartbeat("joiner")
    heartbeat.state("failed", "boom")
    heartbeat.ready()
    heartbeat.state("ready")
    assert heartbeat.now().state == "failed" and heartbeat.now().failure == "boom"


def test_a_signal_ends_the_loop(tmp_path: Path, quiet_root):
    def body(stop: Stop) -> None:
        stop.heartbeat.offsets("events", [3, 4])
        while not stop.is_set():
            if stop.heartbeat.now().state == "ready":
                os.kill(os.getpid(), signal.SIGTERM)
            stop.wait(0.01)

    assert run_parts({"fold": body}, tmp_path) == 0
    beat = read_beat(tmp_path / "run" / "fold.json")
    assert beat is not None and beat.state == "stopping" and beat.offsets == {"events": [3, 4]}
    assert beat.pid == os.getpid() and beat.turned_ms > 0


def test_a_failure_is_told(tmp_path: Path, quiet_root):
    def body(stop: Stop) -> None:
        raise ValueError("cannot reach redis://user:secret@127.0.0.1:1/0")

    assert run_parts({"fold": body}, tmp_path) == 1
    beat = read_beat(tmp_path / "run" / "fold.json")
    assert beat is not None and beat.state == "failed"
    assert beat.failure == "ValueError: cannot reach redis://***@127.0.0.1:1/0"
    text = (tmp_path / "run" / "fold.log").read_text()
    assert "secret" not in text and "Traceback" in json.loads(text.splitlines()[0])["exception"]


def test_a_reader_never_sees_half_a_heartbeat(tmp_path: Path):
    path = tmp_path / "joiner.json"
    heartbeat = Heartbeat("joiner", path)
    heartbeat.write()
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            heartbeat.gauge("x", time.time())
            heartbeat.write()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert all(read_beat(path) is not None for _ in range(300))
    finally:
        done.set()
        writer.join()
    assert [p.name for p in tmp_path.iterdir()] == ["joiner.json"]


def test_no_heartbeat(tmp_path: Path):
    assert read_beat(tmp_path / "none.json") is None
    (tmp_path / "bad.json").write_text("{")
    assert read_beat(tmp_path / "bad.json") is None


def test_what_a_part_makes_is_for_its_owner_only(quiet_root, tmp_path):
    def body(stop):
        (tmp_path / "file").touch()
        (tmp_path / "folder").mkdir()

    assert run_parts({"joiner": body}, tmp_path / "state") == 0
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("file", "folder")]
    assert modes == [0o600, 0o700]


def test_a_write_that_fails_leaves_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_atomically(tmp_path / "file", b"old")

    def full(*paths: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(tmp_path / "file", b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_full_disk_ends_no_part(tmp_path: Path, quiet_root, monkeypatch: pytest.MonkeyPatch):
    """Its state is written with the first heartbeat that finds space."""
    write = SlotFile.write
    turns: list[int] = []

    def full(self: SlotFile, data: bytes) -> None:
        if turns:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, data)

    monkeypatch.setattr(SlotFile, "write", full)

    def body(stop: Stop) -> None:
        turns.append(1)
        stop.is_set()
        turns.clear()
        stop.heartbeat.write()

    assert run_parts({"fold": body}, tmp_path) == 0
    beat = read_beat(tmp_path / "run" / "fold.json")
    assert beat is not None and beat.state == "stopping" and beat.turned_ms > 0


def test_a_part_that_fails_beside_another_starts_again_alone(
    tmp_path: Path, quiet_root, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(part_process, "FIRST_DELAY_S", 0.01)
    turns = {"joiner": 0, "sequencer": 0}
    log = logging.getLogger("test")

    def joiner(stop: Stop) -> None:
        turns["joiner"] += 1
        log.info("joins")
        if turns["joiner"] < 3:
            raise ValueError("no luck")
        while not stop.is_set():
            stop.wait(0.01)

    def sequencer(stop: Stop) -> None:
        log.info("cuts")
        turns["sequencer"] += 1
        while turns["joiner"] < 3 or read_beat(tmp_path / "run" / "joiner.json").state != "ready":
            stop.wait(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        stop.wait(10)

    assert run_parts({"joiner": joiner, "sequencer": sequencer}, tmp_path) == 0
    assert turns == {"joiner": 3, "sequencer": 1}
    for part, own, other in (("joiner", "joins", "cuts"), ("sequencer", "cuts", "joins")):
        text = (tmp_path / "run" / f"{part}.log").read_text()
        assert own in text and other not in text
        assert {json.loads(line)["part"] for line in text.splitlines()} == {part}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), SystemExit(1)])
def test_a_part_starts_again_after_a_full_disk_and_after_an_exit(
    tmp_path: Path, quiet_root, monkeypatch: pytest.MonkeyPatch, error: BaseException
):
    """Though its first heartbeat can't be written."""
    monkeypatch.setattr(part_process, "FIRST_DELAY_S", 0.01)
    starts, failures, write = list[int](), list[int](), SlotFile.write

    def full(self: SlotFile, data: bytes) -> None:
        starting = b'"joiner"' in data and b'"starting"' in data
        if starting and len(starts) == 1 and not failures:
            failures.append(1)
            raise OSError(errno.ENOSPC, "No space left")
        write(self, data)

    monkeypatch.setattr(SlotFile, "write", full)

    def joiner(stop: Stop) -> None:
        starts.append(1)
        if len(starts) == 1:
            raise error
        os.kill(os.getpid(), signal.SIGTERM)
        stop.wait(10)

    def sequencer(stop: Stop) -> None:
        assert stop.wait(5)

    assert run_parts({"joiner": joiner, "sequencer": sequencer}, tmp_path) == 0
    assert len(starts) == 2 and failures


def test_where_the_log_of_all_parts_is_lost_their_process_ends(tmp_path: Path, quiet_root):
    """A part whose own log is lost, as where retention passed it, leaves the others alone."""
    joiner, others = tmp_path / "run" / "joiner.json", list[str]()

    def is_lost() -> bool:
        beat = read_beat(joiner)
        return beat is not None and beat.state == "lost"

    def loses(stop: Stop) -> None:
        raise LogLost("gone")

    def loses_later(stop: Stop) -> None:
        while not is_lost():
            stop.wait(0.01)
        others.append("stopped" if stop.wait(0.1) else "runs")
        raise LogLost("gone")

    assert run_parts({"joiner": loses, "sequencer": loses_later}, tmp_path) == EXIT_LOG_LOST
    assert others == ["runs"]
    assert read_beat(joiner).failure == "LogLost: gone"

    def ends(stop: Stop) -> None:
        while not is_lost():
            stop.wait(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        stop.wait(10)

    assert run_parts({"joiner": loses, "sequencer": ends}, tmp_path) == 0


def test_restarts_beside_others_are_counted_and_their_delays_grow(
    tmp_path: Path, quiet_root, monkeypatch: pytest.MonkeyPatch
):
    times, restarts = list[float](), list[int]()
    monkeypatch.setattr(part_process, "FIRST_DELAY_S", 0.05)

    def flaky(stop: Stop) -> None:
        times.append(time.monotonic())
        restarts.append(read_beat(tmp_path / "run" / "flaky.json").restarts)
        if len(times) < 5:
            raise ValueError("no luck")
        os.kill(os.getpid(), signal.SIGTERM)

    assert run_parts({"flaky": flaky, "other": lambda stop: stop.wait(10)}, tmp_path) == 0
    assert restarts == [0, 1, 2, 3, 4]
    pauses = [after - before for before, after in pairwise(times)]
    assert all(p >= s for p, s in zip(pauses, (0.05, 0.1, 0.2, 0.4), strict=True)), pauses
    assert [part_process.delay_s(n) for n in (1, 2, 1000)] == [0.05, 0.1, 10.0]
