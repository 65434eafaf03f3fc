"""Processes as the supervisor starts, knows again and ends them, and the ports that they listen on.

Each part is the leader of a session of its own, and so are known by their session all that it starts; and
Ray's workers, which begin one each, by their environment (``niceness.PART``). A recorded process is known
again by its id *and* its start time, so that nothing else is ever ended, however long ago it was recorded.
"""

import contextlib
import ipaddress
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
import psutil

from recsys.process.part_process import read_beat
from recsys.process.process_priority import PART

# Start times are read against the clock, which may have been set meanwhile.
_SAME_START_S: Final = 2.0
_OUTPUT_BYTES: Final = 5_000_000


class Identity(msgspec.Struct, frozen=True):
    """A process, for as long as one needs to know it again."""

    pid: int
    started: float  # seconds since 1970


def identify(pid: int) -> Identity:
    """Raises ProcessLookupError where there is none."""
    try:
        return Identity(pid, psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        raise ProcessLookupError(pid) from None


def alive(identity: Identity) -> bool:
    """Whether that process (and not another of its id) runs."""
    try:
        process = psutil.Process(identity.pid)
        same = abs(process.create_time() - identity.started) < _SAME_START_S
        return same and bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def members(leader: Identity) -> list[int]:
    """The processes of the session that ``leader`` leads or led, itself included, and all that came of them,
    in whatever session they are."""
    return list(parts_of({"": leader}))


def parts_of(leaders: Mapping[str, Identity]) -> dict[int, str]:
    """The part of each process that is a member of one, by the parts' leaders: in one look at all of them."""
    by_pid = {leader.pid: (part, leader) for part, leader in leaders.items()}
    led = {pid for pid, (_, leader) in by_pid.items() if not _is_another(leader)}
    found: dict[int, str] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            session = os.getsid(process.pid)
            inside = session if session in led else _came_of(process, by_pid)
            if inside is None or process.status() == psutil.STATUS_ZOMBIE:
                continue
            part, leader = by_pid[inside]
            if process.create_time() >= leader.started - _SAME_START_S:
                found[process.pid] = part
    return found


def _is_another(leader: Identity) -> bool:
    """Whether another process has the leader's id by now: a session keeps its id until its last member has
    gone."""
    try:
        started: float = psutil.Process(leader.pid).create_time()
    except psutil.Error:
        return False
    return abs(started - leader.started) >= _SAME_START_S


def _came_of(process: psutil.Process, leaders: Mapping[int, tuple[str, Identity]]) -> int | None:
    """Which of the leaders its environment names (``mark``), by id."""
    pid, _, started = process.environ().get(PART, "").partition(":")
    if not pid.isdigit() or int(pid) not in leaders:
        return None
    _, leader = leaders[int(pid)]
    return leader.pid if abs(float(started) - leader.started) < _SAME_START_S else None


def mark() -> None:
    """Has all that this process will start name it in its environment."""
    its = identify(os.getpid())
    os.environ[PART] = f"{its.pid}:{its.started:.3f}"


def members_saying(leader: Identity, words: str) -> list[int]:
    """Those members whose command lines have all of these words."""
    found = []
    for pid in members(leader):
        with contextlib.suppress(psutil.Error):
            line = " ".join(psutil.Process(pid).cmdline())
            if all(word in line for word in words.split()):
                found.append(pid)
    return found


def kill_session(leader: Identity, wait_s: float = 2.0) -> None:
    """Kills what is left of a session, also what is forked meanwhile, and waits until it has gone."""
    deadline = time.monotonic() + wait_s
    while (left := members(leader)) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def end_sessions(leaders: Sequence[Identity], grace_s: float) -> int:
    """TERM to the leaders, after the grace KILL to what is left of their sessions; how many leaders ran."""
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


class Child:
    """A part's process: a ``supervisor.Process``. What it leaves behind when it ends is killed."""

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
        self.identity = identify(self._process.pid)
        self._swept, self._heartbeat = False, heartbeat

    @property
    def pid(self) -> int:
        return self._process.pid

    def exit_status(self) -> int | None:
        status = self._process.poll()
        if status is not None and not self._swept:
            self._swept = True
            kill_session(self.identity)
        return status

    def ready(self) -> bool:
        """Whether this very process says so in its heartbeat."""
        beat = read_beat(self._heartbeat)
        return beat is not None and beat.pid == self.pid and beat.state == "ready"

    def failure(self) -> str:
        """What this very process wrote into its heartbeat when it failed."""
        beat = read_beat(self._heartbeat)
        return beat.failure if beat is not None and beat.pid == self.pid else ""

    def terminate(self) -> None:
        """Asks the leader, which ends what it started itself."""
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


def is_loopback(host: str) -> bool:
    """Also for IPv4 in IPv6 clothes, ``::ffff:127.0.0.1``."""
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def listening(leaders: Mapping[str, Identity]) -> dict[str, list[Socket]]:
    """The sockets that each part listens on, by part."""
    names = parts_of(leaders)
    found: dict[str, set[Socket]] = {part: set() for part in leaders}
    for connection in psutil.net_connections("tcp"):
        part = names.get(connection.pid)
        if connection.status == psutil.CONN_LISTEN and part is not None:
            with contextlib.suppress(psutil.Error):
                program = psutil.Process(connection.pid).name()
                host, port = connection.laddr
                found[part].add(Socket(port, host, program))
    return {part: sorted(sockets) for part, sockets in found.items()}


def holders(ports: Iterable[int]) -> dict[int, str]:
    """Which of the ports are listened on, and by whom where that can be seen."""
    wanted = set(ports)
    held: dict[int, str] = {}
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:  # macOS, for other users' processes
        connections = []
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.laddr[1] in wanted:
            held[connection.laddr[1]] = _described(connection.pid)
    return held


def _described(pid: int | None) -> str:
    if not pid:
        return "a process that isn't visible to this user"
    try:
        command = " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        command = ""
    return f"process {pid} ({command[:80] or 'unknown'})"
