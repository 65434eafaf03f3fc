"""Time from ``recsys up`` to the first answer and the first learned step, and when each part was ready."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, TypeVar

from benchmarks.harness import serve_doors as doors
from benchmarks.harness.commands import Figures
from benchmarks.harness.live_system import Live, end
from recsys.client import ApiError
from recsys.config.system_config import Config
from recsys.events.event_types import Engagement
from runtime.supervision import launch_plan as plans

ANSWER_BAR_S: Final = 15.0
STEP_BAR_S: Final = 25.0
_PATIENCE_S: Final = 240.0
_LOOK_S: Final = 0.05
_USER: Final = "first-user"
T = TypeVar("T")


def measure_up() -> Figures:
    """Starts a system as a user does, asks for a list until one is answered, and sends what its viewer
    watched until a step is learned. Raises RuntimeError where that takes too long."""
    doors.check_platform()
    with doors.sigterm_as_exit(), tempfile.TemporaryDirectory(prefix="recsys-bench-") as folder:
        state = Path(folder) / "state"
        command = [
            sys.executable,
            "-m",
            "runtime.cli.main",
            "up",
            "--detach",
            "--state",
            str(state),
        ]
        free = {"RECSYS__SERVE__PORT": "0", "RECSYS__SERVE__DASHBOARD_PORT": "0"}
        began_s, began_ms = time.monotonic(), time.time() * 1000
        process = subprocess.Popen(command, env=os.environ | free, stdout=subprocess.DEVNULL)
        try:
            plan = _until("plan", lambda: _plan(state))
            system = Live(plan)
            _until("answer", lambda: _answer(system))
            answer_s = time.monotonic() - began_s
            system.publish_world()
            _until("learned step", lambda: _learned(system))
            step_s = time.monotonic() - began_s
            if process.wait(_PATIENCE_S):
                raise RuntimeError(f"`recsys up` ended with {process.returncode}, expected 0")
            ready_s = time.monotonic() - began_s
            lines = (state / "run" / "up.log").read_text().splitlines()
        finally:
            end(state)
            process.wait()
    return {
        "first_answer_s": round(answer_s, 1),
        "first_step_s": round(step_s, 1),
        "ready_s": round(ready_s, 1),
        "parts": part_times(lines, began_ms),
        "met": answer_s <= ANSWER_BAR_S and step_s <= STEP_BAR_S,
    }


def part_times(lines: Iterable[str], began_ms: float) -> dict[str, dict[str, float]]:
    """Seconds from ``began_ms`` to each part's first start and readiness, from the supervisor's log."""
    times: dict[str, dict[str, float]] = {}
    for line in lines:
        entry = json.loads(line)
        if entry.get("state") in ("starting", "ready", "done"):
            state = "starting" if entry["state"] == "starting" else "ready"
            seconds = round((entry["time_ms"] - began_ms) / 1000, 1)
            times.setdefault(entry["of"], {}).setdefault(state, seconds)
    return times


def _until(what: str, look: Callable[[], T | None]) -> T:
    """Looks until there is a true value, and returns it."""
    until_s = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until_s:
        with contextlib.suppress(ApiError, OSError):
            if value := look():
                return value
        time.sleep(_LOOK_S)
    raise RuntimeError(
        f"no {what} after {_PATIENCE_S:.0f} s, expected one: run it with nothing beside it"
    )


def _answer(system: Live) -> Any:
    with system.client() as client:
        return client.recommend(_USER, 1)


def _plan(state: Path) -> Config | None:
    """Configuration with addresses; None until it is written."""
    return plans.read(state)[0] if (state / "run" / "up.json").exists() else None


def _learned(system: Live) -> int:
    """Sends views of all items of a new list; returns the served step."""
    with system.client() as client:
        answer = client.recommend(_USER, 10)
        now_ms = int(time.time() * 1000)
        client.send_events([
            Engagement(time_ms=now_ms, request_id=answer.request_id, user_id=_USER, item_id=item.item_id,
                       kind="view", watch_ms=9_000)
            for item in answer.items
        ])  # fmt: skip
        return int(client.status()["version"]["step"])
