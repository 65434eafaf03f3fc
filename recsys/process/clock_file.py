"""The file ``state/clock.json``: the pace of event time, where that isn't the machine's.

`recsys up` makes it at the first start. While the system runs, the supervisor extends the clock's lease each
second. So event time stands still while the system is down: it goes on where it was after a clean end, and at
most a lease later after a kill. It begins to pass once all parts are ready. A driver may change the pace
(``ClockKeeper.change``); each process reads the file at each call of its clock, in memory that they share.
"""

import fcntl
import uuid
from collections.abc import Callable
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Final

import msgspec
from msgspec.structs import replace

from recsys.clock import NO_LIMIT_MS, Clock, Pace, machine_ms, machine_ns
from recsys.config.clock_config import ClockConfig
from recsys.config.system_config import Config
from recsys.events.control_records import LogClock
from recsys.events.records import CONTROL, EVENTS, ITEMS, pack, unpack
from recsys.log.protocol import Append, Log, LogLost
from recsys.process.log_consumer import UNREADABLE
from recsys.process.slot_file import SlotFile, read_slots, slots_of

FILE: Final = "clock.json"
LEASE_S: Final = 3.0  # for which event time passes without the supervisor
_HEAD: Final = 30  # bytes of a slot that change with each write
_HISTORY: Final = ("log.id", "log")  # in a state folder that has records


class StoredClock(msgspec.Struct, frozen=True, kw_only=True):
    """Content of the file. ``start_ms`` and ``speed``: as configured; None: the machine's time then."""

    id: str
    start_ms: int | None
    speed: float
    began_ms: int  # event time at the first start
    pace: Pace


def clock_of(config: Config) -> Callable[[], int]:
    """The clock of a system's event time, in ms. Raises ValueError before the system was started once."""
    if config.clock.is_machine:
        return machine_ms
    return Clock(MappedPace(Path(config.state) / FILE))


class MappedPace:
    """Reads the newest pace, without a call of the system. For any number of threads."""

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                self._map = mmap(file.fileno(), 0, access=ACCESS_READ)
        except FileNotFoundError:
            raise ValueError(
                f"there is no {path}, which the clock of the configuration needs: `recsys up` makes it"
            ) from None
        self._half = len(self._map) // 2
        self._newest = (b"", _decoded(read_slots(path), path).pace)

    def __call__(self) -> Pace:
        begun, half = self._newest[0], self._half
        heads = self._map[:_HEAD] + self._map[half : half + _HEAD]
        if heads != begun:
            slots = slots_of(self._map[:])
            if slots and len(slots) == heads.count(b"#"):  # none is being written
                self._newest = heads, msgspec.json.decode(max(slots)[1], type=StoredClock).pace
        return self._newest[1]


class ClockKeeper:
    """Changes the pace of a system's clock. Several processes may: each change is made under a lock."""

    def __init__(self, state: str | Path, now_ns: Callable[[], int] = machine_ns) -> None:
        self._path, self._now_ns = Path(state) / FILE, now_ns

    def extend(self, lease_s: float = LEASE_S) -> None:
        """Lets event time pass for so long from now on; 0 holds it. The supervisor calls it each second."""
        self._rewrite(lambda pace: replace(pace, until_ns=pace.machine_ns + int(1e9 * lease_s)))

    def change(self, speed: float, limit_ms: float = NO_LIMIT_MS) -> float:
        """Sets the speed from now on, 0 to hold the clock, and an event time at which it waits for the next
        change. Returns the event time that is reached."""
        if not 0 <= speed < float("inf"):
            raise ValueError(f"the speed is {speed}, expected a finite number of 0 or more")

        def changed(pace: Pace) -> Pace:
            return replace(pace, speed=speed, limit_ms=max(limit_ms, pace.event_ms))

        return self._rewrite(changed).event_ms

    def _rewrite(self, change: Callable[[Pace], Pace]) -> Pace:
        """Replaces the pace by one that begins now, where the one before it has come to."""
        with self._path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            stored = _decoded(read_slots(self._path), self._path)
            now_ns, pace = self._now_ns(), stored.pace
            left_ns = max(0, min(pace.until_ns, pace.until_ns - pace.machine_ns + now_ns) - now_ns)
            reached = replace(pace, machine_ns=now_ns, event_ms=pace.at(now_ns), until_ns=now_ns + left_ns)
            new = change(reached)
            SlotFile(self._path).write(msgspec.json.encode(replace(stored, pace=new)))
            return new


def start_clock(config: Config, now_ns: Callable[[], int] = machine_ns) -> None:
    """Makes the clock of a system at its first start, or goes on with it; event time stands still until its
    lease is extended. Call it before all parts, with the state folder locked.

    Raises ValueError where the configuration's clock isn't the one of the state folder.
    """
    path, wanted = Path(config.state) / FILE, config.clock
    if path.exists():
        stored = _decoded(read_slots(path), path)
        _check_same(stored, wanted, path)
        keeper = ClockKeeper(config.state, now_ns)
        keeper.change(wanted.speed)
        keeper.extend(0)
    elif not wanted.is_machine:
        _make(config, path, now_ns())


def _make(config: Config, path: Path, now_ns: int) -> None:
    wanted, now_ms = config.clock, now_ns // 1_000_000
    if any((path.parent / name).exists() for name in _HISTORY):
        raise ValueError(
            f"clock.{_text(wanted)}, expected none: {path.parent} has records of the machine's time. Leave "
            "clock out, or use another state folder (--state)"
        )
    start_ms = now_ms if wanted.start_ms is None else wanted.start_ms
    if start_ms > now_ms:
        raise ValueError(
            f"clock.start is {wanted.start!r}, which is {(start_ms - now_ms) / 3_600_000:.1f} hours ahead of "
            "the machine's time, expected a time that is over; set it in the configuration"
        )
    pace = Pace(machine_ns=now_ns, event_ms=start_ms, speed=wanted.speed, until_ns=now_ns)
    stored = StoredClock(
        id=uuid.uuid4().hex, start_ms=wanted.start_ms, speed=wanted.speed, began_ms=start_ms, pace=pace
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    SlotFile(path).write(msgspec.json.encode(stored), sync=True)


def _check_same(stored: StoredClock, wanted: ClockConfig, path: Path) -> None:
    if (stored.start_ms, stored.speed) != (wanted.start_ms, wanted.speed):
        start = "none" if stored.start_ms is None else stored.start_ms
        raise ValueError(
            f"clock.{_text(wanted)}, expected start {start}, speed {stored.speed}, with which {path.parent} "
            "was started first: its records have the times of that clock. Set these, or use another state "
            "folder (--state)"
        )


def _text(clock: ClockConfig) -> str:
    return f"start is {clock.start!r}, clock.speed {clock.speed}"


def _decoded(data: bytes, path: Path) -> StoredClock:
    try:
        return msgspec.json.decode(data, type=StoredClock)
    except msgspec.MsgspecError as error:
        raise ValueError(
            f"{path} can't be read ({error}): restore it from a backup of this state folder"
        ) from None


def claim_log(log: Log, config: Config) -> None:
    """Marks an empty log with the clock of its system, as the first record of ``control``.

    Raises LogLost where the log's records have the times of another clock: of another system, or without one.
    """
    own, on_log = _own_mark(config), _mark_on(log)
    if own is not None and on_log is None and not _has_records(log):
        log.append(CONTROL, [Append(0, b"", pack(own))])
        on_log = _mark_on(log)  # another system may have been faster
    if own != on_log:
        raise LogLost(
            f"the log at {config.log.url} has the times of {_name(on_log)}, expected {_name(own)} of "
            f"{config.state}: two clocks can't share a log. Give this system another log, or start it with "
            "the configuration and the state folder of that clock"
        )


def _own_mark(config: Config) -> LogClock | None:
    if config.clock.is_machine:
        return None
    path = Path(config.state) / FILE
    stored = _decoded(read_slots(path), path)
    return LogClock(id=stored.id, start_ms=stored.began_ms, speed=stored.speed)


def _mark_on(log: Log) -> LogClock | None:
    for record in log.read(CONTROL, 0, log.begin(CONTROL, 0), 1):
        try:
            return unpack(record.value, LogClock)
        except UNREADABLE:
            return None
    return None


def _has_records(log: Log) -> bool:
    return any(log.end(t, p) for t in (CONTROL, EVENTS, ITEMS) for p in range(log.partitions(t)))


def _name(mark: LogClock | None) -> str:
    if mark is None:
        return "the machine's clock"
    return f"the clock {mark.id[:8]} (start {mark.start_ms}, speed {mark.speed})"
