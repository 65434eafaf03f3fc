"""The run file ``STATE/run/up.json``: the supervisor writes the state of all parts, others read it."""

import fcntl
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from recsys.process.part_process import owned_folder, run_folder
from recsys.process.slot_file import read_slots
from runtime.supervision.processes import Identity, Socket, alive, describe, end_marked, end_sessions, members

FILE: Final = "up.json"
_LOCK: Final = "up.lock"


class PartRecord(msgspec.Struct, frozen=True, kw_only=True):
    """State of one part, as the supervisor sees it."""

    name: str
    state: str
    reason: str = ""
    since_ms: int = 0
    restarts: int = 0
    last_exit: int | None = None
    process: Identity | None = None
    sockets: list[Socket] = []


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """One run of ``recsys up``, from start to end."""

    supervisor: Identity
    # Digest of the configuration before addresses were filled in.
    config_digest: str
    started_ms: int
    time_ms: int
    stopping: bool = False
    parts: list[PartRecord] = []

    @property
    def ready(self) -> bool:
        return all(part.state in ("ready", "done") for part in self.parts)

    @property
    def lost(self) -> dict[str, str]:
        """Parts that can never continue, and why."""
        return {part.name: part.reason for part in self.parts if part.state == "lost"}

    @property
    def processes(self) -> list[Identity]:
        return [part.process for part in self.parts if part.process is not None]

    def any_alive(self) -> bool:
        """Whether the supervisor or a part still runs."""
        return any(map(alive, [self.supervisor, *self.processes]))


class AlreadyRuns(RuntimeError):
    """Another supervisor has locked the state folder."""


def read(state: str | Path) -> Running | None:
    """Reads the run file; its writer may be gone (see ``alive``). None where there never was one."""
    try:
        return msgspec.json.decode(read_slots(Path(state) / "run" / FILE), type=Running)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


@contextmanager
def lock(state: str | Path, file: str = _LOCK) -> Iterator[None]:
    """Locks the state folder, or another ``file`` of its run folder; raises AlreadyRuns where another process
    has locked it.

    The folder is for its owner only (PermissionError where that is another user): sessions and events are
    personal data. The lock ends with the process, however that ends.
    """
    owned_folder(state)
    descriptor = os.open(run_folder(state) / file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRuns(f"{_owner(descriptor)} uses {Path(state).resolve()}") from None
        with suppress(OSError):  # a full disk
            os.pwrite(descriptor, f"{os.getpid():<10}{socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def holder(state: str | Path) -> str:
    """Description of the process that holds the lock; empty where none does."""
    try:
        descriptor = os.open(Path(state) / "run" / _LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return ""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return ""
    except BlockingIOError:
        return _owner(descriptor)
    finally:
        os.close(descriptor)


def _owner(descriptor: int) -> str:
    pid, host, *_ = (*os.pread(descriptor, 100, 0).decode().partition("\n")[0].split(), "", "")
    if host not in ("", socket.gethostname()):  # nodes of a cluster share the folder
        return f"process {pid} on {host}"
    return describe(int(pid or "0"))


def end_leftovers(state: str | Path, grace_s: float = 10.0) -> int:
    """Ends parts that a killed supervisor left running; returns their number. The caller holds the lock."""
    last = read(state)
    if last is not None and alive(last.supervisor):
        return 0
    recorded = end_sessions(last.processes, grace_s) if last is not None else 0
    return recorded + end_marked(state, grace_s)


def stop(state: str | Path, running: Running, grace_s: float = 90.0) -> bool:
    """Stops the supervisor, then what it left; returns whether the supervisor ended every part itself."""
    if alive(running.supervisor):
        os.kill(running.supervisor.pid, signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while alive(running.supervisor) and time.monotonic() < deadline:
            time.sleep(0.05)
        if alive(running.supervisor):
            os.kill(running.supervisor.pid, signal.SIGKILL)
    left = [process for process in (read(state) or running).processes if members(process)]
    end_sessions(left, 10.0)
    return not end_marked(state, 10.0) and not left
