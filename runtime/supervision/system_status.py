"""System status: state, throughput, lag and freshness, gathered from run files, the log and the server."""

import os
from collections.abc import Iterable
from contextlib import closing, nullcontext, suppress
from operator import add
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
import psutil

from experiments.promotion.kinds.features import progress
from recsys.clock import machine_ms
from recsys.config.system_config import Config
from recsys.events.control_records import LineHold
from recsys.events.records import DEAD_LETTERS, STEPS, Step, unpack
from recsys.log.protocol import Log, LogUnavailable, RangeReader, newest_first
from recsys.observability.catching_up import CatchingUp, catching_up
from recsys.process.clock_file import clock_of
from recsys.process.disk_budget import Space
from recsys.process.log_holders import holders
from recsys.process.open_log import open_log
from recsys.process.part_process import Beat, read_beat
from recsys.process.space_file import read_space
from recsys.process.worker_share import part_of
from runtime.supervision import launch_plan
from runtime.supervision.api_client import ApiConnection
from runtime.supervision.processes import alive
from runtime.supervision.run_file import PartRecord, Running
from runtime.supervision.run_file import read as read_run_file
from training.lines.control import lifecycle_of

CATCHING_UP: Final = "catching up"
# Answers lack what these are behind; others only work later.
_ANSWERS_NEED: Final = ("session-fold", "counters", "joiner", "sequencer")
_STALLED_MS: Final = 15_000  # without a turn of a part's loop, or a run file by the supervisor
# Parts whose counters measure throughput; each event and example passes them once.
_EVENTS_FROM: Final = ("session-fold", "joiner", "counters")
_EXAMPLES_FROM: Final = ("trainer", "joiner")
_FRESHNESS: Final = ("click_to_session_p95_ms", "click_to_served_p95_ms")


class LogOffsets(RangeReader, Protocol):
    """Read access to a log, with its number of partitions."""

    def partitions(self, topic: str) -> int: ...


class Version(msgspec.Struct, frozen=True):
    """Model version: line, epoch and step."""

    line: str
    epoch: int
    step: int

    def __str__(self) -> str:
        return f"{self.line}/{self.epoch}/{self.step}"


class PartStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Status of one part: supervisor state, heartbeat, and lag by topic (unread records)."""

    name: str
    # A supervisor state; "catching up": answers lack what it is behind; "unchecked": its process cannot be
    # checked; "stalled"; "gone": it has ended, and its supervisor has not seen it; "orphaned": it runs, and
    # its supervisor is gone.
    state: str
    restarts: int = 0
    last_exit: int | None = None
    counters: dict[str, float] = {}
    rates: dict[str, float] = {}
    gauges: dict[str, float] = {}
    lag: dict[str, int] = {}
    catching_up: dict[str, CatchingUp] = {}  # topics that it is far behind
    names: dict[str, list[str]] = {}
    failure: str = ""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Output of ``recsys status --json``. None: unknown."""

    state: str
    running: bool
    ready: bool
    stale: bool = False  # the supervisor runs, but writes its run file no longer
    cut: Version | None = None  # newest step that the sequencer cut
    served: Version | None = None
    events_per_s: float | None = None
    examples_per_s: float | None = None
    click_to_session_p95_ms: float | None = None
    click_to_served_p95_ms: float | None = None
    restarts: int = 0
    dead_letters: int | None = None
    lost: dict[str, str] = {}  # parts that can't continue since their log is lost, and why
    space: Space | None = None  # disk space; None: unknown
    load: float | None = None  # of the machine per core, over the last minute
    memory_free_bytes: int | None = None
    change: str = ""  # how far the newest change of features is; empty without one
    hold: LineHold | None = None  # the newest of the live line
    holders: list[str] = []  # folds that keep topics beyond their share of the disk from shrinking
    exposed: list[str] = []  # ports open beyond loopback, as part:host:port
    parts: list[PartStatus] = []
    server: dict[str, Any] = {}  # answer of GET /v1/status


def gather(state: Path, with_change: bool = True) -> Status:
    """Reads the run files, the log and the server. Unreachable sources are left out, without an error.
    ``with_change`` reads all of ``control``, which is kept forever."""
    running = read_run_file(state)
    if running is None:
        return Status(state=str(state.resolve()), running=False, ready=False)
    config, _ = launch_plan.read(state)
    up = alive(running.supervisor)
    log = _open_existing(config) if up or config.log.url == "sqlite" else None
    with closing(log) if log else nullcontext():
        server = server_status(config) if up else {}
        status = observe_system(state, running, up, log, log, server)
        if log is None or not with_change:
            return status
        with suppress(LogUnavailable, KeyError):
            lifecycle = lifecycle_of(log)
            change = progress(lifecycle.definition, lifecycle.candidates.values())
            return msgspec.structs.replace(status, change=change, hold=lifecycle.hold)
        return status


def observe_system(
    state: Path, running: Running, up: bool, log: Log | None, offsets: LogOffsets | None,
    server: dict[str, Any],
) -> Status:  # fmt: skip
    """Status, with disk space, processors and memory that are left. ``offsets``: those of the log, perhaps
    cached."""
    beats = {part.name: read_beat(state / "run" / f"{part.name}.json") for part in running.parts}
    status = assemble(state, running, up, beats, offsets, server)
    space, named = read_space(state, machine_ms()), list[str]()
    with suppress(LogUnavailable, KeyError):
        for topic in space.over if space else ():
            clock = clock_of(launch_plan.read(state)[0])
            named += holders(log, topic, clock()) if log else []
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    memory = psutil.virtual_memory().available
    return msgspec.structs.replace(
        status, space=space, holders=named, load=load / cores, memory_free_bytes=memory
    )


def _open_existing(config: Config) -> Log | None:
    if config.log.url == "sqlite" and not (Path(config.state) / "log").is_dir():
        return None  # a status request must not create a log
    with suppress(Exception):  # an unreachable broker shows in the state of its part
        return open_log(config)
    return None


def assemble(
    state: Path, running: Running, up: bool, beats: dict[str, Beat | None], log: LogOffsets | None,
    server: dict[str, Any],
) -> Status:  # fmt: skip
    """Builds the status from run file, heartbeats, log and the server's answer."""
    now_ms = machine_ms()
    stale = up and now_ms - running.time_ms > _STALLED_MS
    parts = [_part(part, beats[part.name], log, up, now_ms) for part in running.parts]
    are_ready = all(part.state in ("ready", "done") for part in parts)
    by_name = {part.name: part for part in with_workers(parts)}
    fresh: dict[str, Any] = {name: server.get(name) for name in _FRESHNESS}
    return Status(
        state=str(state.resolve()),
        running=up,
        ready=up and not stale and are_ready,
        stale=stale,
        cut=last_step(log) if log is not None else None,
        served=version_in(server),
        events_per_s=_first_rate("events", _EVENTS_FROM, by_name),
        examples_per_s=_first_rate("examples", _EXAMPLES_FROM, by_name),
        restarts=sum(part.restarts for part in parts),
        dead_letters=waiting(log, DEAD_LETTERS, None) if log is not None else None,
        lost=running.lost,
        exposed=[
            f"{part.name}:{socket.host}:{socket.port}"
            for part in running.parts
            for socket in part.sockets
            if not socket.loopback
        ],
        parts=parts,
        server=server,
        **fresh,
    )


def _part(part: PartRecord, beat: Beat | None, log: LogOffsets | None, up: bool, now_ms: int) -> PartStatus:
    runs = part.process is not None and alive(part.process)
    if up:
        state = part.state if runs or part.process is None else "gone"
    else:
        state = "orphaned" if runs else "stopped"
    values: dict[str, Any] = {}
    if beat is not None:
        if state == "ready" and beat.turned_ms and now_ms - beat.turned_ms > _STALLED_MS:
            state = "stalled"
        values = {"counters": beat.counters, "failure": beat.failure}
        if up:
            behind = {t: waiting(log, t, offsets) for t, offsets in beat.offsets.items() if log}
            lag = {topic: count for topic, count in behind.items() if count is not None}
            late = {t: far for t, n in lag.items() if (far := catching_up(n, beat.reads.get(t, 0.0)))}
            if late and state == "ready" and part_of(part.name) in _ANSWERS_NEED:
                state = CATCHING_UP
            values |= {"catching_up": late}
            values |= {"rates": beat.rates, "gauges": beat.gauges, "lag": lag, "names": beat.names}
    return PartStatus(name=part.name, state=state, restarts=part.restarts, last_exit=part.last_exit, **values)


def with_workers(parts: Iterable[PartStatus]) -> list[PartStatus]:
    """Parts, each with its workers' values added up; where a sum says nothing it has the largest."""
    by_part: dict[str, PartStatus] = {}
    for part in parts:
        name, values = part_of(part.name), {}
        if name in by_part:
            for field in ("counters", "rates", "gauges"):
                values[field] = _added(getattr(by_part[name], field), getattr(part, field))
        by_part[name] = msgspec.structs.replace(by_part.get(name, part), name=name, **values)
    return list(by_part.values())


def _added(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    return {
        key: (max if _is_largest(key) else add)(one.get(key, 0), other.get(key, 0)) for key in one | other
    }


def _is_largest(key: str) -> bool:
    """Whether a part's value is the largest of its workers': of delays, and of what each has by itself."""
    is_delay = key.endswith(("_ms", "_s")) and not key.endswith("cpu_s")
    return is_delay or key.endswith("sets") or key in ("paused", "behind")


def waiting(log: LogOffsets, topic: str, offsets: list[int] | None) -> int | None:
    """Number of records between ``offsets`` (None: the beginning) and the end, over all partitions; without
    those whose offset is -1.

    Exact where offsets are dense, else an upper bound. None where the topic can't be read.
    """
    try:
        count = log.partitions(topic)
        return sum(
            max(0, log.end(topic, p) - (log.begin(topic, p) if offsets is None else offsets[p]))
            for p in range(count)
            if offsets is None or offsets[p] >= 0
        )
    except Exception:
        return None


def last_step(log: LogOffsets) -> Version | None:
    """Version of the newest record of ``steps``; None without a readable one."""
    with suppress(Exception):
        for record in newest_first(log, STEPS, 0):
            step = unpack(record.value, Step)
            return Version(step.line, step.epoch, step.step)
    return None


def server_status(config: Config) -> dict[str, Any]:
    """Answer of the server's GET /v1/status; empty where it doesn't answer."""
    return ApiConnection(config).json_object("/v1/status")


def version_in(server: dict[str, Any]) -> Version | None:
    """Version at the top of the server's answer, or in its ``stamp`` or ``version``."""
    for place in (server, server.get("stamp"), server.get("version")):
        if isinstance(place, dict):
            with suppress(msgspec.ValidationError):
                return msgspec.convert(place, Version)
    return None


def _first_rate(counter: str, names: tuple[str, ...], by_name: dict[str, PartStatus]) -> float | None:
    for name in names:
        if name in by_name and counter in by_name[name].rates:
            return by_name[name].rates[counter]
    return None
