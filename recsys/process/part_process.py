"""Run loop of a part process: stop flag, heartbeat file, log file.

A part is ``run(config, stop)``; its loop turns while ``not stop.is_set()`` and is ready at its first turn. A
thread rewrites the heartbeat ``state/run/<part>.json`` about once a second; ``turned_ms`` reveals a part
whose thread runs but whose loop doesn't turn.
"""

import hashlib
import logging
import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import count
from math import isfinite
from pathlib import Path
from typing import Final

import msgspec

from recsys.clock import machine_ms
from recsys.log.protocol import LogLost
from recsys.observability.log_lines import log_to_files, redact
from recsys.process.malloc_tuning import return_freed_memory
from recsys.process.slot_file import SlotFile, read_slots
from recsys.process.turn_pace import TurnPace

_log = logging.getLogger(__name__)
FIRST_DELAY_S: Final = 0.2
LONGEST_DELAY_S: Final = 10.0
HEALTHY_S: Final = 60.0  # a part that ran for this long starts again after the first delay
_TRIM_EVERY: Final = 60  # heartbeats
EXIT_LOG_LOST: Final = 4  # exit status of a part whose log is lost: restarting can't help


def owned_folder(path: str | Path) -> Path:
    """Makes a folder, and parents that are missing, for this user only; closes an existing one to others.

    Raises PermissionError where another user owns it or a link to it, or where all users share it, as /tmp.
    """
    folder = Path(path)
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)
    status, user = folder.stat(), os.geteuid()
    owners = {status.st_uid, folder.lstat().st_uid} - {user}
    if owners:
        raise PermissionError(
            f"{folder} belongs to user {owners.pop()}, expected user {user}, who runs this: choose another "
            f"folder, or change its owner: chown -R {user} {folder}"
        )
    if status.st_mode & stat.S_ISVTX:
        raise PermissionError(f"{folder} is shared by all users: choose a folder of your own in it")
    if status.st_mode & 0o077:
        folder.chmod(0o700)
        _log.warning("%s is now closed to other users; its mode was %o", folder, status.st_mode & 0o777)
    return folder


def run_folder(state: str | Path) -> Path:
    """The folder ``state/run`` of heartbeats, addresses and logs. Readable by its owner only."""
    folder = Path(state) / "run"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


def write_atomically(path: Path, data: bytes, mode: int = 0o600, sync: bool = False) -> None:
    """Replaces a file atomically: readers see the old or the new one. Without ``sync`` it isn't synced to
    disk: a power cut may empty it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)  # whatever the umask
            file.write(data)
            if sync:
                file.flush()
                os.fsync(descriptor)
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def with_digest(text: bytes) -> bytes:
    """A text of one line, followed by a line with its SHA-256."""
    return text + b"\n" + hashlib.sha256(text).hexdigest().encode()


def without_digest(data: bytes) -> bytes:
    """The text of ``with_digest``. Raises ValueError if it isn't as it was written."""
    text, _, digest = data.rpartition(b"\n")
    if hashlib.sha256(text).hexdigest().encode() != digest:
        raise ValueError("its SHA-256 isn't the one stored in it")
    return text


class Beat(msgspec.Struct, kw_only=True):
    """Content of a heartbeat file."""

    part: str
    pid: int
    started_ms: int
    time_ms: int = 0  # when it was written
    turned_ms: int = 0  # when the part's loop last turned
    restarts: int = 0  # after a failure, beside others of its process
    state: str = "starting"  # starting | ready | stopping | failed | lost, as its log
    counters: dict[str, float] = {}  # since the process started
    rates: dict[str, float] = {}  # of the counters, per second, over the last seconds
    gauges: dict[str, float] = {}
    offsets: dict[str, list[int]] = {}  # topic -> the next offset to read, by partition
    reads: dict[str, float] = {}  # topic -> records read per second, over the last seconds
    worked_s: float = 0.0  # processor time of the part's thread
    addresses: dict[str, str] = {}
    names: dict[str, list[str]] = {}
    failure: str = ""


class Heartbeat:
    """Counters, gauges and offsets of one part, for ``recsys status`` and the supervisor.

    Safe for several threads. Rates are smoothed over about five seconds.
    """

    def __init__(
        self, part: str, path: Path | None = None, clock: Callable[[], int] = machine_ms, restarts: int = 0
    ) -> None:
        self._clock, self._lock, self._write_lock = clock, threading.Lock(), threading.Lock()
        self._file = SlotFile(path) if path is not None else None
        started_ms = clock()
        self._beat = Beat(part=part, pid=os.getpid(), started_ms=started_ms, restarts=restarts)
        self._rated_ms, self._rated, self._read = started_ms, dict[str, float](), dict[str, float]()

    def add(self, name: str, count: float = 1) -> None:
        with self._lock:
            self._beat.counters[name] = self._beat.counters.get(name, 0) + count

    def gauge(self, name: str, value: float) -> None:
        with self._lock:
            self._beat.gauges[name] = value

    def replace_gauges(self, begins: str, gauges: Mapping[str, float]) -> None:
        """Replaces all gauges whose names begin with ``begins``, so that outdated ones disappear."""
        with self._lock:
            rest = {n: v for n, v in self._beat.gauges.items() if not n.startswith(begins)}
            self._beat.gauges = rest | dict(gauges)

    def offsets(self, topic: str, offsets: Sequence[int]) -> None:
        """Sets the next offsets that the part will read, by partition: ``status`` derives its lag."""
        with self._lock:
            self._beat.offsets[topic] = [int(offset) for offset in offsets]

    def address(self, name: str, address: str) -> None:
        with self._lock:
            self._beat.addresses[name] = address

    def names(self, name: str, names: list[str]) -> None:
        with self._lock:
            self._beat.names[name] = names

    def turned(self) -> None:
        self._beat.turned_ms = self._clock()

    def worked(self, seconds: float) -> None:
        """Sets the processor time of the part's thread: the supervisor sees by it that a part which isn't
        ready makes progress."""
        with self._lock:
            self._beat.worked_s = round(seconds, 2)

    def state(self, state: str, failure: str = "") -> None:
        """Changes the state and writes it at once, or with the next heartbeat if the disk is full. A stopping
        or failed part never becomes ready again."""
        with self._lock:
            if state == "ready" and self._beat.state != "starting":
                return
            self._beat.state, self._beat.failure = state, failure
        with suppress(OSError):
            self.write()

    def ready(self) -> None:
        if self._beat.state == "starting":
            self.state("ready")

    def now(self) -> Beat:
        """A copy with current rates, without gauges that aren't finite: JSON has no number for them."""
        with self._lock:
            gauges = self._beat.gauges
            self._beat.gauges = {name: gauges[name] for name in gauges if isfinite(gauges[name])}
            self._beat.time_ms = self._clock()
            self._rate(self._beat.time_ms)
            return msgspec.convert(msgspec.to_builtins(self._beat), Beat)

    def write(self) -> None:
        if self._file is not None:
            with self._write_lock:
                self._file.write(msgspec.json.encode(self.now()))

    def _rate(self, now_ms: int) -> None:
        passed = (now_ms - self._rated_ms) / 1000
        if passed < 0.5:
            return
        weight, beat = min(1.0, passed / 5.0), self._beat
        read = {topic: float(sum(o for o in places if o > 0)) for topic, places in beat.offsets.items()}
        for values, rated, rates in (
            (beat.counters, self._rated, beat.rates), (read, self._read, beat.reads),
        ):  # fmt: skip
            for name, value in values.items():
                rate = (value - rated.get(name, 0.0 if values is beat.counters else value)) / passed
                before = rates.get(name, rate)
                rates[name] = round(before + weight * (rate - before), 3)
        self._rated_ms, self._rated, self._read = now_ms, dict(beat.counters), read


def read_beat(path: Path) -> Beat | None:
    """A part's heartbeat, or None if it can't be read."""
    try:
        return msgspec.json.decode(read_slots(path), type=Beat)
    except (OSError, msgspec.MsgspecError):
        return None


class Stop:
    """Stop flag of a part (SIGTERM, SIGINT, or ``set``), with its heartbeat.

    ``is_set`` and ``wait`` count as turns: the first one marks the part ready. During set-up pass
    ``starting=True``. ``pace``: of the part's turns, where it shares an interpreter with one that answers.
    """

    def __init__(
        self, heartbeat: Heartbeat | None = None, event: threading.Event | None = None,
        pace: TurnPace | None = None,
    ) -> None:  # fmt: skip
        self.heartbeat, self.pace = heartbeat or Heartbeat(""), pace
        self._event = event or threading.Event()

    def set(self) -> None:
        self._event.set()

    def is_set(self, starting: bool = False) -> bool:
        if not starting:
            self._turn()
        return self._event.is_set()

    def wait(self, timeout_s: float, starting: bool = False) -> bool:
        """Sleeps until the timeout or a stop; True for a stop."""
        if not starting:
            self._turn()
        return self._event.wait(timeout_s)

    def _turn(self) -> None:
        self.heartbeat.turned()
        self.heartbeat.ready()


def run_parts(bodies: Mapping[str, Callable[[Stop], None]], state: str | Path, format: str = "json") -> int:
    """Runs the bodies of parts in this process; returns the exit status. ``format``: of their logs.

    Call it in the main thread: it handles SIGTERM and SIGINT. An exception of a body is logged and written to
    the heartbeat's ``failure``; the status is then 1, or ``EXIT_LOG_LOST`` for LogLost. Several bodies run in
    threads: one that fails starts again alone, after ``delay_s``, and one whose log is lost ends alone. Where
    that holds for all, the status is ``EXIT_LOG_LOST``.
    """
    os.umask(0o077)  # also for what it starts: Valkey, Ray with its workers
    folder, asked = run_folder(state), threading.Event()
    log_to_files({part: folder / f"{part}.log" for part in bodies}, format)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.set())
    if len(bodies) == 1:
        [(part, body)] = bodies.items()
        return _run_body(Heartbeat(part, folder / f"{part}.json"), body, asked)
    threads = PartThreads(bodies, folder, asked)
    threads.start()
    return threads.join()


class PartThreads:
    """Bodies of parts, each in a thread of this process until ``asked`` is set. One that fails starts again
    alone, after ``delay_s``, and one whose log is lost ends alone. ``folder``: of their heartbeats. ``pace``:
    of their turns."""

    def __init__(
        self, bodies: Mapping[str, Callable[[Stop], None]], folder: Path, asked: threading.Event,
        pace: TurnPace | None = None,
    ) -> None:  # fmt: skip
        self._folder, self._asked, self._pace = folder, asked, pace
        self._statuses = list[int]()
        run = self._keep_running
        self._threads = [threading.Thread(target=run, args=each, name=each[0]) for each in bodies.items()]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self) -> int:
        """Waits for all; returns ``EXIT_LOG_LOST`` where all ended by it, else the least status."""
        for thread in self._threads:
            thread.join()
        return min(self._statuses)

    def _keep_running(self, part: str, body: Callable[[Stop], None]) -> None:
        failures = 0
        for restarts in count():
            started = time.monotonic()
            try:
                heartbeat = Heartbeat(part, self._folder / f"{part}.json", restarts=restarts)
                status = _run_body(heartbeat, body, self._asked, self._pace)
            except OSError:  # a full disk must not end the thread, which nobody would start again
                _log.exception("heartbeat not written")
                status = 1
            failures = 1 if time.monotonic() - started >= HEALTHY_S else failures + 1
            if status == EXIT_LOG_LOST or self._asked.wait(delay_s(failures)):
                break
        self._statuses.append(status)


def delay_s(failures: int) -> float:
    """Restart delay after this many failures in a row: 0.2 s, doubling, at most 10 s."""
    return min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(failures - 1, 30))


def _run_body(
    heartbeat: Heartbeat, body: Callable[[Stop], None], asked: threading.Event, pace: TurnPace | None = None
) -> int:
    heartbeat.write()
    done = threading.Event()
    thread = threading.get_native_id()
    beating = threading.Thread(target=_beat_until, args=(heartbeat, done, thread), daemon=True)
    beating.start()
    logger = logging.getLogger(__name__)
    try:
        body(Stop(heartbeat, asked, pace))
    except (Exception, SystemExit) as error:  # a thread would end without a word
        logger.exception("part failed")
        failure = redact(f"{type(error).__name__}: {error}")
        done.set()
        beating.join()
        lost = isinstance(error, LogLost)
        heartbeat.state("lost" if lost else "failed", failure[:500])
        return EXIT_LOG_LOST if lost else 1
    done.set()
    beating.join()
    heartbeat.state("stopping")
    logger.info("part ended", extra={"asked": asked.is_set()})
    return 0


def _beat_until(heartbeat: Heartbeat, done: threading.Event, thread: int = 0, every_s: float = 1.0) -> None:
    """Writes the heartbeat, and once a minute returns what a part no longer needs, as after catching up.
    ``thread``: native id of the part's."""
    for beat in count(1):
        if done.wait(every_s):
            return
        if beat % _TRIM_EVERY == 0:
            return_freed_memory()
        heartbeat.worked(_processor_s(thread))
        try:
            heartbeat.write()
        except OSError:  # a full disk or a removed folder must not end the part
            logging.getLogger(__name__).exception("heartbeat not written")


def _processor_s(thread: int) -> float:
    """Processor time of a thread of this process; of all its threads where Linux's files are missing."""
    try:
        fields = Path(f"/proc/self/task/{thread}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return time.process_time()
