"""Time from ``recsys up`` to the first answer and the first learned step, and when each part was ready."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import psutil

from benchmarks.harness import serve_doors as doors
from benchmarks.harness.commands import Figures
from benchmarks.harness.live_system import Live, end
from examples.short_video.world import World
from recsys.client import ApiError, Client
from recsys.config.system_config import Config
from recsys.events.event_types import Engagement
from runtime.supervision import launch_plan as plans
from runtime.supervision.processes import end_marked

ANSWER_BAR_S: Final = 15.0
STEP_BAR_S: Final = 25.0
_PATIENCE_S: Final = 240.0
_LOOK_S: Final = 0.05
_GRACE_S: Final = 10.0
_OUTPUT: Final = 2_000  # characters of the output in an error
_USER: Final = "first-user"
T = TypeVar("T")


def measure_up() -> Figures:
    """Starts a system as a user does, publishes a catalogue as soon as it can be reached, asks for a list
    until a whole one is answered, sends what its viewer watched, and waits until a step is learned. Raises
    RuntimeError where `recsys up` fails, or something takes too long."""
    doors.check_platform()
    with doors.sigterm_as_exit(), tempfile.TemporaryDirectory(prefix="recsys-bench-") as folder:
        state, world = Path(folder) / "state", World(start_ms=time.time_ns() // 1_000_000)
        recsys = Path(sys.executable).with_name("recsys")
        command = [str(recsys), "up", "--detach", "--state", str(state)]
        began_s, began_ms = time.monotonic(), time.time() * 1000
        with started(command, state, Path(folder) / "up.out") as up:
            system = Live(up.until("plan", lambda: _plan(state)), world)
            with system.client() as client:
                up.until("open port", client.status)
                up.until("catalogue", lambda: _is_published(system))
                up.until("answer", lambda: is_answered(client))
                answer_s = time.monotonic() - began_s
                up.until("accepted view", lambda: are_views_sent(client))
                up.until("learned step", lambda: int(client.status()["version"]["step"]))
                step_s = time.monotonic() - began_s
            up.until("end of `recsys up`", lambda: up.process.poll() == 0)
            ready_s = time.monotonic() - began_s
            lines = (state / "run" / "up.log").read_text().splitlines()
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


@dataclass(frozen=True)
class Up:
    """A started ``recsys up``, and the file with its output."""

    process: "subprocess.Popen[bytes]"
    output: Path

    def until(self, what: str, look: Callable[[], T | None], patience_s: float = _PATIENCE_S) -> T:
        """Looks until there is a true value, and returns it. Raises RuntimeError where there is none in time,
        or `recsys up` has failed."""
        until_s, failure = time.monotonic() + patience_s, ""
        while time.monotonic() < until_s:
            try:
                if value := look():
                    return value
            except (ApiError, OSError) as error:
                failure = f" ({error})"
            if self.process.poll():
                raise RuntimeError(
                    f"`recsys up` ended with {self.process.returncode}, expected 0; waited for: {what}\n"
                    f"{self._last_output()}"
                )
            time.sleep(_LOOK_S)
        raise RuntimeError(
            f"no {what} after {patience_s:.0f} s{failure}, expected one: run it with nothing beside it\n"
            f"{self._last_output()}"
        )

    def _last_output(self) -> str:
        return self.output.read_text(errors="replace")[-_OUTPUT:]


@contextmanager
def started(command: list[str], state: Path, output: Path) -> Iterator[Up]:
    """Runs ``recsys up`` at free ports; ends it and its system, also where that has no run file yet."""
    free = {"RECSYS__SERVE__PORT": "0", "RECSYS__SERVE__DASHBOARD_PORT": "0"}
    with output.open("wb") as file:
        process = subprocess.Popen(
            command, env=os.environ | free, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        yield Up(process, output)
    finally:
        children = list[psutil.Process]()  # the supervisor, while `recsys up` waits for it
        with contextlib.suppress(psutil.Error):
            children = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        end(state)
        for child in children:
            with contextlib.suppress(psutil.Error):
                child.terminate()
        for child in psutil.wait_procs(children, _GRACE_S)[1]:
            with contextlib.suppress(psutil.Error):
                child.kill()
        end_marked(state, _GRACE_S)


def _plan(state: Path) -> Config | None:
    """Configuration with addresses; None until it is written."""
    return plans.read(state)[0] if (state / "run" / "up.json").exists() else None


def _is_published(system: Live) -> bool:
    system.publish_world()
    return True


def is_answered(client: Client) -> bool:
    """Asks for a list; whether it has items and no stage was skipped but the model, which has no step yet."""
    answer = client.recommend(_USER, 1)
    return bool(answer.items) and set(answer.degraded) <= {"model"}


def are_views_sent(client: Client) -> bool:
    """Sends views of all items of a new list; whether all count."""
    answer = client.recommend(_USER, 10)
    now_ms = int(time.time() * 1000)
    receipt = client.send_events([
        Engagement(time_ms=now_ms, request_id=answer.request_id, user_id=_USER, item_id=item.item_id,
                   kind="view", watch_ms=9_000)
        for item in answer.items
    ])  # fmt: skip
    return 0 < len(answer.items) == receipt.accepted and not receipt.unproven
