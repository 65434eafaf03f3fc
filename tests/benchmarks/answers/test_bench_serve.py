"""The serving bench, small and without Ray: its state is one that a replica answers whole lists from."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.answers import bench_serve
from benchmarks.answers.bench_serve_state import STEP, BenchState, build
from benchmarks.answers.serve_load import Door, ServeOptions
from benchmarks.harness import serve_doors as doors
from benchmarks.harness import worker_processes as bench_parts
from tests.support.systems.waiting_part import wait

pytestmark = pytest.mark.pairs(5)

pytest.importorskip("fbgemm_gpu")


@pytest.mark.slow
@pytest.mark.services
def test_the_app_behind_uvicorn_answers_whole_lists_from_the_benchs_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_serve, "ROUNDS", 1)
    ask = ServeOptions(items=400, seconds=0.6, rate=20.0)
    config, _ = doors.write_plan(doors.bench_config(str(tmp_path), candidates=50))
    built = build(config, ask.items, ask.seed, now_ms=1_790_000_000_000)
    assert len(built.sessions) == 1_000 and built.session_bytes > 10_000
    with doors.parts(config, ("valkey",)) as running:
        doors.fill_sessions(config, built.sessions)
        with bench_serve._uvicorn(config) as door:
            found = bench_serve._measure([door], ask, print)["uvicorn"]
            assert doors.served_step(door.port) == STEP
            assert 50 < doors.memory_mb(door.pid)[0] <= doors.memory_mb(door.pid)[1]
        valkey = running["valkey"].pid
    assert found["failed"] == found["refused"] == found["degraded"] == 0
    assert found["requests_per_s"] > 0 and 0 < found["p50_ms"] <= found["p95_ms"] <= found["p99_ms"]
    assert not Path(f"/proc/{valkey}").exists()


def test_being_told_to_end_is_said_once_and_does_not_cut_the_ending_short() -> None:
    before, ended = signal.getsignal(signal.SIGTERM), False
    with pytest.raises(SystemExit), doors.sigterm_as_exit():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            ended = True
    assert ended and signal.getsignal(signal.SIGTERM) is before


SPEED = {30_000: 90.0, 7: 100.0, 8: 81.0}  # requests a second at the direct port, bare uvicorn, a public one


@contextmanager
def no_parts(*_: Any) -> Iterator[dict[str, Any]]:
    yield {"ray": None}


@contextmanager
def bare(_: Any) -> Iterator[Door]:
    yield Door("uvicorn", 7, 3)


def send(door: Door, ask: ServeOptions, seconds: float, rate: float = 0.0, clients: int = 0) -> Any:
    """A server that does what it can, and refuses the rest."""
    most = SPEED.get(door.port, SPEED[8])
    goodput = min(most, rate) if rate else most
    late = {"late_p99_ms": 0.1, "cores_busy": 0.1}
    return {"requests_per_s": goodput, "p50_ms": 2.0, "p99_ms": 4.0 + (rate > most), "generator": late}


def test_the_figures_are_those_of_the_direct_port_and_the_others_stand_beside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {
        "parts": no_parts,
        "fill_sessions": lambda *_: None,
        "replica_pid": lambda _: 2,
        "direct_port": lambda _: 30_000,
        "memory_mb": lambda _: (50.0, 60.0),
    }.items():
        monkeypatch.setattr(doors, name, value)
    monkeypatch.setattr(bench_serve, "build", lambda *_: BenchState({}, 25_000))
    monkeypatch.setattr(bench_serve, "_uvicorn", bare)
    monkeypatch.setattr(bench_serve, "send", send)
    monkeypatch.setattr(bench_serve, "_stages", lambda *_: {"request_us": 900.0})
    found = bench_serve.measure_serve(ServeOptions(overload=3.0))
    figures, others = found["figures"], found["comparators"]
    assert set(others) == {"haproxy", "uvicorn", "serve_proxy"}
    assert [its["requests_per_s"] for its in (figures, others["uvicorn"])] == [90.0, 100.0]
    assert figures["rate"] == 45.0 and figures["p99_ms"] == 4.0 and figures["request_us"] == 900.0
    assert figures["of_uvicorn"] == 0.9 and others["haproxy"]["of_uvicorn"] == 0.81
    assert figures["rss_mb"] == 50.0 and others["serve_proxy"]["peak_rss_mb"] == 60.0
    over = figures["overload"]["direct"]
    assert (over["rate"], over["goodput_of_peak"], over["p99_of_half_peak"]) == (270.0, 1.0, 1.25)
    assert figures["overload"]["haproxy"]["goodput_per_s"] == 81.0 and over["grown_mb"] == 0.0


@pytest.mark.slow
def test_parts_end_though_one_was_killed_while_it_waited_to_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_parts, "_ASK_S", 0.5)
    told, stop, start = bench_parts.process_starter()
    parts = [start(wait, told, stop) for _ in range(2)]
    for _ in parts:
        assert told.get(timeout=60)[0] == "ready"
    time.sleep(0.1)
    parts[0].kill()
    parts[0].join(10)
    bench_parts.end_processes(parts, stop)
    assert not parts[1].is_alive()


def test_doors_are_compared_round_by_round() -> None:
    assert bench_serve._ratio([90.0, 50.0, 80.0], [100.0, 50.0, 100.0]) == 0.9
