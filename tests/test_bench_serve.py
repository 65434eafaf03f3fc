"""The serving bench, small and without Ray: its state is one that a replica answers whole lists from."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from recsys.cli import bench_parts, bench_serve
from recsys.cli import bench_serve_doors as doors
from recsys.cli.bench_serve import Ask
from recsys.cli.bench_serve_state import STEP, build

pytest.importorskip("fbgemm_gpu")


@pytest.mark.slow
@pytest.mark.services
def test_the_app_behind_uvicorn_answers_whole_lists_from_the_benchs_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_serve, "ROUNDS", 1)
    ask = Ask(items=400, seconds=0.6, rate=20.0)
    config, _ = doors.planned(doors.bench_config(str(tmp_path), candidates=50))
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
    with pytest.raises(SystemExit), doors.ended_by_term():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            ended = True
    assert ended and signal.getsignal(signal.SIGTERM) is before


def _waits(told: Any, stop: Any) -> None:
    told.put(("ready", 0, None))
    stop.wait()


@pytest.mark.slow
def test_parts_end_though_one_was_killed_while_it_waited_to_be_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bench_parts, "_ASK_S", 0.5)
    told, stop, start = bench_parts.ways(True)
    parts = [start(_waits, told, stop) for _ in range(2)]
    for _ in parts:
        assert told.get(timeout=60)[0] == "ready"
    time.sleep(0.1)
    parts[0].kill()
    parts[0].join(10)
    bench_parts.end(parts, stop)
    assert not parts[1].is_alive()


def test_doors_are_compared_round_by_round() -> None:
    assert bench_serve._ratio([90.0, 50.0, 80.0], [100.0, 50.0, 100.0]) == 0.9
