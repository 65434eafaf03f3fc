"""Starts, identifies and ends the parts' processes, and lists the ports that they listen on.

Each part leads its own session, so its children are found by their session. Ray's workers begin sessions of
their own and are found by an environment variable (``process_priority.PART``), and processes that no run file
records by another (``STATE``). A recorded process is identified by its id *and* its start time, so that no
unrelated process is ever ended, however old the record, and none is lost when the clock is set.
"""

import contextlib
import copy
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from math import isnan, nan
from pathlib import Path
from typing import Final

import msgspec
import psutil

from recsys.clock import machine_ns
from recsys.process.part_process import Beat, read_beat
from recsys.process.process_priority import PART
from serving.access.hosts import is_loopback

# Without a boot's id start times depend on the clock, which may have been set in between.
_SAME_START_S: Final = 2.0
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_BOOT: Final = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""
_OUTPUT_BYTES: Final = 5_000_000
# State folder of the system that a process belongs to, in the environment of all parts.
STATE: Final = "RECSYS_STATE"
# As ``STATE``, for processes of a Ray node, which a start or an end of the system leaves running.
NODE_STATE: Final = "RECSYS_NODE_STATE"


class Identity(msgspec.Struct, frozen=True):
    """Process id and start time: identifies a process even after its id was reused."""

    pid: int
    # Seconds since the boot, which no change of the clock moves; without ``boot`` since 1970.
    started: float
    boot: str = ""  # Linux's id of it; empty on macOS and in older records


def identify(pid: int) -> Identity:
    """Returns the identity of a running process. Raises ProcessLookupError where there is none."""
    started = _started(pid, _BOOT)
    if isnan(started):
        raise ProcessLookupError(pid)
    return Identity(pid, started, _BOOT)


def _started(pid: int, boot: str) -> float:
    """Start time of a process as in ``Identity``; nan, which is near no time, if there is no such process or
    it can't be read, and for another boot."""
    with contextlib.suppress(psutil.Error, FileNotFoundError, ProcessLookupError, PermissionError):
        if not boot:
            return float(psutil.Process(pid).create_time())
        if boot == _BOOT:
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
            return int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return nan


def alive(identity: Identity) -> bool:
    """Whether this process runs, and not another one with its id."""
    same = abs(_started(identity.pid, identity.boot) - identity.started) < _SAME_START_S
    with contextlib.suppress(psutil.Error):
        return same and bool(psutil.Process(identity.pid).status() != psutil.STATUS_ZOMBIE)
    return False


def members(leader: Identity) -> list[int]:
    """Process ids of the leader's session, including the leader, and of all descendants in other sessions."""
    return list(parts_of({"": leader}))


def parts_of(leaders: Mapping[str, Identity]) -> dict[int, str]:
    """Maps process ids to parts, given each part's leader, in one pass over all processes."""
    by_pid = {leader.pid: (part, leader) for part, leader in leaders.items()}
    led = {pid for pid, (_, leader) in by_pid.items() if not _is_reused(leader)}
    part_of: dict[int, str] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
            session = os.getsid(process.pid)
            leader_pid = session if session in led else _marked_leader(process, by_pid)
            if leader_pid is None or process.status() == psutil.STATUS_ZOMBIE:
                continue
            part, leader = by_pid[leader_pid]
            if _started(process.pid, leader.boot) >= leader.started - _SAME_START_S:
                part_of[process.pid] = part
    return part_of


def _is_reused(leader: Identity) -> bool:
    """Whether another process has the leader's id. A session keeps its id until its last member ends."""
    return abs(_started(leader.pid, leader.boot) - leader.started) >= _SAME_START_S


def _marked_leader(process: psutil.Process, leaders: Mapping[int, tuple[str, Identity]]) -> int | None:
    """Process id of the leader that the process's environment names (see ``mark``)."""
    pid, _, started = process.environ().get(PART, "").partition(":")
    if not pid.isdigit() or int(pid) not in leaders:
        return None
    _, leader = leaders[int(pid)]
    return leader.pid if abs(float(started) - leader.started) < _SAME_START_S else None


def mark() -> None:
    """Names this process in the environment that all its future children inherit."""
    identity = identify(os.getpid())
    os.environ[PART] = f"{identity.pid}:{identity.started:.3f}"


def kill_session(leader: Identity, wait_s: float = 2.0) -> None:
    """Kills the rest of a session, including processes forked meanwhile, and waits for their end."""
    deadline = time.monotonic() + wait_s
    while (left := members(leader)) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def end_sessions(leaders: Sequence[Identity], grace_s: float) -> int:
    """Sends TERM to the leaders, and after the grace period KILL to their sessions.

    Returns how many leaders ran.
    """
    running = [leader for leader in leaders if alive(leader)]
    for leader in running:
        with contextlib.suppress(OSError):
            os.kill(leader.pid, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while any(alive(leader) for leader in running) and time.monotonic() < deadline:
        time.sleep(0.05)
    for leader in leaders:
        kill_session(leader)
    return len(running)


def end_marked(state: str | Path, grace_s: float) -> int:
    """Ends all processes whose environment names the state folder (``STATE``); returns their number."""
    name, left = str(Path(state).resolve()), []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(STATE) == name and process.pid != os.getpid():
                process.terminate()
                left.append(process)
    for process in psutil.wait_procs(left, grace_s)[1]:
        with contextlib.suppress(psutil.Error):
            process.kill()
    return len(left)


class Child:
    """A part's process: a ``supervisor.Process``. Children that outlive it are killed."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], output: Path, heartbeat: Path
    ) -> None:
        if output.exists() and output.stat().st_size > _OUTPUT_BYTES:
            output.replace(output.with_suffix(output.suffix + ".1"))
        with output.open("ab") as file:
            self._process = subprocess.Popen(
                command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=file,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        # Nothing may fail from here on: the process runs, and only this object knows it.
        try:
            self.identity = identify(self._process.pid)
        except (psutil.Error, OSError):  # dead already, or too many open files
            now_s = time.clock_gettime(time.CLOCK_BOOTTIME) if _BOOT else machine_ns() / 1e9
            self.identity = Identity(self._process.pid, now_s, _BOOT)
        self._swept, self._heartbeat = False, heartbeat

    def beside(self, heartbeat: Path) -> "Child":
        """Another part in the same process: what ends one ends both."""
        other = copy.copy(self)
        other._heartbeat = heartbeat
        return other

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def exit_status(self) -> int | None:
        status = self._process.poll()
        if status is not None and not self._swept:
            kill_session(self.identity)  # may raise OSError, and is then tried again
            self._swept = True
        return status

    def beat(self) -> Beat | None:
        """The part's newest heartbeat, unless another process wrote it."""
        beat = read_beat(self._heartbeat)
        return beat if beat is not None and beat.pid == self.pid else None

    def terminate(self) -> None:
        """Sends TERM to the leader, which ends its own children."""
        with contextlib.suppress(OSError):
            self._process.terminate()

    def kill(self) -> None:
        kill_session(self.identity)


class Socket(msgspec.Struct, frozen=True, order=True):
    """A TCP port that a process listens on."""

    port: int
    host: str
    program: str

    @property
    def loopback(self) -> bool:
        return is_loopback(self.host)


def listening(leaders: Mapping[str, Identity]) -> dict[str, list[Socket]]:
    """Lists the sockets that each part listens on."""
    names = parts_of(leaders)
    sockets: dict[str, set[Socket]] = {part: set() for part in leaders}
    for connection in psutil.net_connections("tcp"):
        part = names.get(connection.pid)
        if connection.status == psutil.CONN_LISTEN and part is not None:
            with contextlib.suppress(psutil.Error):
                program = psutil.Process(connection.pid).name()
                host, port = connection.laddr
                sockets[part].add(Socket(port, host, program))
    return {part: sorted(listed) for part, listed in sockets.items()}


def holders(ports: Iterable[int]) -> dict[int, str]:
    """Maps each of the ports that is in use to a description of the listening process."""
    wanted = set(ports)
    listeners: dict[int, str] = {}
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:  # macOS, for other users' processes
        connections = []
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.laddr[1] in wanted:
            listeners[connection.laddr[1]] = describe(connection.pid)
    return listeners


def describe(pid: int | None) -> str:
    """Describes a process in words."""
    if not pid:
        return "a process that isn't visible to this user"
    try:
        command = " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        command = ""
    return f"process {pid} ({command[:80] or 'unknown'})"
