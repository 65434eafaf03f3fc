"""The bench of the start of a system, with small programs in place of ``recsys up``; no system is started."""

import json
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from benchmarks.system.up_times import are_views_sent, is_answered, part_times, started
from recsys.client import ApiError, Client, Receipt, Recommendations, Recommended
from runtime.supervision.processes import alive, identify

_ITEMS = [Recommended(item_id="a"), Recommended(item_id="b")]


class _Server:
    """A client whose server answers with this list and this receipt."""

    def __init__(self, answer: Recommendations, receipt: Receipt | None = None) -> None:
        self._answer, self._receipt, self.events = answer, receipt, list[Any]()

    def recommend(self, user_id: str, n: int) -> Recommendations:
        return self._answer

    def send_events(self, events: list[Any]) -> Receipt:
        self.events += events
        assert self._receipt is not None
        return self._receipt

    def client(self) -> Client:
        return cast(Client, self)


def _answer(items: list[Recommended], degraded: tuple[str, ...] = ()) -> Recommendations:
    return Recommendations(request_id="r", items=items, degraded=list(degraded))


def test_a_part_starts_and_gets_ready_once() -> None:
    lines = [
        {"time_ms": 1_000, "message": "part changed", "of": "ray", "state": "starting"},
        {"time_ms": 4_000, "message": "part changed", "of": "ray", "state": "ready"},
        {"time_ms": 5_000, "message": "part changed", "of": "log", "state": "done"},
        {"time_ms": 6_000, "message": "part changed", "of": "ray", "state": "backoff"},
        {"time_ms": 9_000, "message": "part changed", "of": "ray", "state": "ready"},
        {"time_ms": 9_500, "message": "something else"},
    ]
    times = part_times(map(json.dumps, lines), 500.0)
    assert times == {"ray": {"starting": 0.5, "ready": 3.5}, "log": {"ready": 4.5}}


def test_an_answer_is_a_whole_list_with_items() -> None:
    assert is_answered(_Server(_answer(_ITEMS, ("model",))).client())
    assert is_answered(_Server(_answer(_ITEMS)).client())
    assert not is_answered(_Server(_answer([])).client())
    assert not is_answered(_Server(_answer(_ITEMS, ("session",))).client())


def test_views_are_sent_once_all_of_a_list_count() -> None:
    server = _Server(_answer(_ITEMS), Receipt(2, []))
    assert are_views_sent(server.client())
    assert [(event.item_id, event.request_id) for event in server.events] == [
        ("a", "r"),
        ("b", "r"),
    ]
    assert not are_views_sent(_Server(_answer(_ITEMS), Receipt(1, [])).client())
    assert not are_views_sent(_Server(_answer(_ITEMS), Receipt(2, [], unproven=1)).client())
    assert not are_views_sent(_Server(_answer([]), Receipt(0, [])).client())


def test_a_failed_start_raises_at_once_with_its_output(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('no free port'); raise SystemExit(3)"]
    with started(command, tmp_path / "state", tmp_path / "up.out") as up:
        with pytest.raises(RuntimeError, match=r"ended with 3(.|\n)*plan(.|\n)*no free port"):
            up.until("plan", lambda: None)


def test_waiting_ends_after_the_patience(tmp_path: Path) -> None:
    def unavailable() -> bool:
        raise ApiError("GET", "/v1/status", 503, "not yet")

    with started([sys.executable, "-c", ""], tmp_path / "state", tmp_path / "up.out") as up:
        assert up.until("end", lambda: up.process.poll() == 0)
        with pytest.raises(RuntimeError, match="no answer after 0 s .*503 .not yet"):
            up.until("answer", unavailable, patience_s=0.1)


def test_an_interrupted_start_leaves_no_process(tmp_path: Path) -> None:
    """Neither `recsys up` nor its supervisor, which has a session of its own and no run file yet."""
    child = "import time; time.sleep(600)"
    parent = (
        "import subprocess, sys\n"
        f"p = subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)\n"
        "print(p.pid, flush=True)\n"
        "p.wait()\n"
    )
    output = tmp_path / "up.out"
    with pytest.raises(KeyboardInterrupt):
        with started([sys.executable, "-c", parent], tmp_path / "state", output) as up:
            supervisor = identify(up.until("process id", lambda: int(output.read_text() or 0)))
            raise KeyboardInterrupt
    assert up.process.poll() is not None and not alive(supervisor)
