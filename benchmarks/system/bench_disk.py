"""``recsys bench disk``: a live system on a disk that is full for a minute, while lists are asked for, events
with known ids arrive and one part is killed.

The state folder is on a file system of its own in memory (tmpfs), which needs root on Linux. A file fills it
to the last byte. Afterwards all parts must be ready within 30 s of room, and nothing that was acknowledged
may be lost. Meanwhile the status is read every second and compared with the processes and the disk.
"""

import contextlib
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from benchmarks.harness.audited_system import AuditedSystem, audited_config
from benchmarks.harness.commands import Figures, Log, no_log
from benchmarks.harness.live_system import HealthTarget, Live
from recsys.client import ApiError
from recsys.config.safety_config import DiskConfig
from recsys.process.disk_budget import Level
from runtime.supervision.processes import alive
from runtime.supervision.system_status import Status, gather

BAR_S: Final = 30.0
_DISK_MB: Final = 1_500
_FREE_GB: Final = 0.1  # disk.free_gb: events are refused with less than a quarter of it
_LEAD_S: Final = 10.0
_KILL_AFTER_S: Final = 15.0  # of the full disk
_NOTICED_S: Final = 4.0  # the status may be older than the fault by this
_BACK_S: Final = 180.0
_EVERY_S: Final = 0.25


@dataclass(frozen=True)
class DiskOptions:
    """Options of the bench. ``kill``: the part that is killed while the disk is full; empty for none."""

    seconds: float = 60.0
    kill: str = "joiner"


def measure_disk(options: DiskOptions, log_progress: Log = no_log) -> Figures:
    """Answered lists, time until all parts are back, faults of the status, and what is lost."""
    disk = DiskConfig(free_gb=_FREE_GB)
    with ExitStack() as stack:
        folder = stack.enter_context(small_disk())
        config = replace(audited_config(), state=str(folder / "state"), disk=disk)
        system = stack.enter_context(AuditedSystem(config))
        log_progress("a whole system runs")
        time.sleep(_LEAD_S)
        watched = stack.enter_context(Watch(system))
        fill(folder / "ballast")
        full_s = watched.full_s = time.monotonic()
        time.sleep(_KILL_AFTER_S if options.kill else 0)
        if options.kill:
            system.signal([system.leader(options.kill).pid], signal.SIGKILL)
            watched.killed_s = time.monotonic()
        time.sleep(max(0.0, full_s + options.seconds - time.monotonic()))
        acknowledged = len(system.viewers.acknowledged)
        (folder / "ballast").unlink()
        watched.room_s, expected = (room_s := time.monotonic()), system.expected()
        log_progress(f"room again; meanwhile {dict(watched.lists)} lists by status")
        ready_s = seconds_until(lambda: not unready(system), room_s)
        log_progress(f"all parts are ready after {ready_s} s: {unready(system)}")
        events_s = seconds_until(lambda: len(system.viewers.acknowledged) > acknowledged, room_s)
        answers_s = seconds_until(lambda: not reason(system, expected), room_s)
        watched.stop()
        audit = system.audit()
    return {
        "what": f"disk full for {options.seconds:.0f} s, {options.kill or 'nothing'} killed meanwhile",
        "figures": {
            "bar_s": BAR_S,
            "parts_ready_after_s": ready_s,
            "events_accepted_after_s": events_s,
            "answers_complete_after_s": answers_s,
            "lists": {str(status): count for status, count in sorted(watched.lists.items())},
            "degraded": dict(watched.degraded),
            "levels": watched.levels,
            "status_reads": watched.reads,
            "status_faults": watched.faults,
            "restarts": watched.restarts,
            **audit,
        },
        "comparators": {},
    }


@contextmanager
def small_disk() -> Iterator[Path]:
    """A file system of its own, unmounted at the end. Raises RuntimeError without the right to mount."""
    folder = Path(tempfile.mkdtemp(prefix="recsys-bench-"))
    options = f"size={_DISK_MB}m,mode=0700"
    command = ["mount", "-t", "tmpfs", "-o", options, "recsys-bench", str(folder)]
    try:
        made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode:
            raise RuntimeError(
                f"no file system can be mounted at {folder} ({made.stderr.strip()}), expected the rights of "
                "root on Linux"
            )
        try:
            yield folder
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
    finally:
        folder.rmdir()


def fill(file: Path) -> None:
    """Takes all space that is left."""
    with file.open("wb", buffering=0) as ballast:
        for size in (2**20, 4096):
            with contextlib.suppress(OSError):
                while True:
                    ballast.write(b"\0" * size)


def seconds_until(holds: Callable[[], bool], since_s: float) -> float | None:
    """Seconds from ``since_s`` until a condition holds; None if it doesn't in time."""
    while time.monotonic() - since_s < _BACK_S:
        if holds():
            return round(time.monotonic() - since_s, 1)
        time.sleep(_EVERY_S)
    return None


def unready(system: Live) -> list[str]:
    """Parts that aren't ready, or whose heartbeat is old."""
    states = gather(system.state).parts
    return [part.name for part in states if part.state not in ("ready", "done")]


def reason(system: Live, expected: HealthTarget) -> str:
    """Reason why answers aren't complete."""
    try:
        return system.unhealthy_reason(expected)
    except (ApiError, OSError) as error:
        return repr(error)


@dataclass
class Watch:
    """Asks for lists and reads the status until ``stop``. ``faults``: where the status was wrong."""

    system: Live
    full_s: float = float("inf")
    killed_s: float = float("inf")
    room_s: float = float("inf")
    lists: Counter[int] = field(default_factory=Counter)
    degraded: Counter[str] = field(default_factory=Counter)
    levels: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    reads: int = 0
    restarts: int = 0

    def __enter__(self) -> "Watch":
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=act, daemon=True) for act in (self._ask, self._read)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(30)

    def _ask(self) -> None:
        number = 0
        with self.system.client() as client:
            while not self._ended.wait(_EVERY_S):
                number += 1
                try:
                    answer = client.recommend(f"w{number % 20}", 5)
                except ApiError as error:
                    self.lists[error.status] += 1
                else:
                    self.lists[200] += 1
                    self.degraded.update(answer.degraded)

    def _read(self) -> None:
        while not self._ended.wait(1.0):
            began_s = time.monotonic()
            status = gather(self.system.state)
            self.reads += 1
            self.restarts = status.restarts
            level = status.space.level.name if status.space else "unknown"
            if level not in self.levels[-1:]:
                self.levels.append(level)
            at = round(began_s - self.full_s, 1)
            self.faults += [f"{at} s: {fault}" for fault in self._wrong(status, began_s)]

    def _wrong(self, status: Status, began_s: float) -> Iterator[str]:
        """Contradictions between the status and what is the case."""
        if not status.running:
            yield "the supervisor is said not to run"
        is_full = self.full_s + _NOTICED_S < began_s and time.monotonic() < self.room_s
        level = status.space.level if status.space else None
        if is_full and level is not Level.FULL:
            yield f"the disk is full, the level is {level}"
        if status.ready and any(part.state not in ("ready", "done") for part in status.parts):
            yield "ready, with parts that aren't"
        if status.ready and not self.system.replicas():
            yield "ready, without a replica"
        for part in status.parts:
            with contextlib.suppress(RuntimeError):
                runs = alive(self.system.leader(part.name))
                if part.state == "ready" and not runs and not _gone(self.system, part.name):
                    yield f"{part.name} is said to be ready, and doesn't run"


def _gone(system: Live, name: str) -> bool:
    """Whether a look again, after the time that the supervisor has, sees that a part has ended."""
    time.sleep(_NOTICED_S)
    now = {part.name: part.state for part in gather(system.state).parts}
    return now[name] != "ready" or alive(system.leader(name))
