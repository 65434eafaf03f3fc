"""What runs in a state folder: ``state/run/up.json``, written by the supervisor, read by everyone else."""

import fcntl
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from recsys.process.part_process import run_folder
from runtime.supervision.processes import Identity, Socket, alive, end_sessions, members


class PartRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One part, as the supervisor sees it."""

    name: str
    state: str
    reason: str = ""
    since_ms: int = 0
    restarts: int = 0
    last_exit: int | None = None
    process: Identity | None = None
    sockets: list[Socket] = []


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """One ``recsys up``, from its start to its end."""

    supervisor: Identity
    asked: str  # digest of the configuration that was asked for
    started_ms: int
    time_ms: int
    stopping: bool = False
    parts: list[PartRecord] = []

    @property
    def ready(self) -> bool:
        return all(part.state in ("ready", "done") for part in self.parts)

    @property
    def lost(self) -> dict[str, str]:
        """The parts that can't go on, however long one waits, and why."""
        return {part.name: part.reason for part in self.parts if part.state == "lost"}

    @property
    def processes(self) -> list[Identity]:
        return [part.process for part in self.parts if part.process is not None]


class AlreadyRuns(RuntimeError):
    """Another supervisor holds the state folder."""


def read(state: str | Path) -> Running | None:
    """What was last written, maybe by one that is gone (see ``alive``); None where nothing ever was."""
    try:
        data = (Path(state) / "run" / "up.json").read_bytes()
        return msgspec.json.decode(data, type=Running)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


@contextmanager
def held(state: str | Path) -> Iterator[None]:
    """Holds the state folder while it lasts; raises AlreadyRuns where another process does.

    A folder that isn't there is made, for its owner only: sessions and events are of persons. The lock goes
    with the process, however that ends.
    """
    Path(state).mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(run_folder(state) / "up.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise AlreadyRuns(f"another `recsys up` runs in {Path(state).resolve()}") from None
    try:
        yield
    finally:
        os.close(descriptor)


def end_leftovers(state: str | Path, grace_s: float = 10.0) -> int:
    """Ends the parts that a killed supervisor left running; how many. Call it while holding the folder."""
    last = read(state)
    if last is None or alive(last.supervisor):
        return 0
    return end_sessions(last.processes, grace_s)


def stop(state: str | Path, running: Running, grace_s: float = 90.0) -> bool:
    """Has the supervisor end everything, and ends what is left; whether the supervisor did it all itself."""
    if alive(running.supervisor):
        os.kill(running.supervisor.pid, signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while alive(running.supervisor) and time.monotonic() < deadline:
            time.sleep(0.05)
        if alive(running.supervisor):
            os.kill(running.supervisor.pid, signal.SIGKILL)
    left = [process for process in (read(state) or running).processes if members(process)]
    end_sessions(left, 10.0)
    return not left
