"""The vital signs of a running system, gathered from the run files, the log and the server."""

import json
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from recsys.config.system_config import Config
from recsys.events.records import DEAD_LETTERS, STEPS, Step, unpack
from recsys.log.protocol import Log, Reads, newest_first
from recsys.process.part_process import Beat, read_beat
from runtime.supervision import launch_plan as plans
from runtime.supervision import run_file as runs
from runtime.supervision.processes import alive

_STALLED_MS: Final = 15_000  # a part that beats but whose loop hasn't turned for so long
_HTTP_S: Final = 2.0
# The parts whose counters say how much flows; each event and example passes them once.
_EVENTS_FROM: Final = ("session-fold", "joiner", "counters")
_EXAMPLES_FROM: Final = ("trainer", "joiner")
_FRESHNESS: Final = ("click_to_session_p95_ms", "click_to_served_p95_ms")


class Ends(Reads, Protocol):
    """What is asked of a log here."""

    def partitions(self, topic: str) -> int: ...


class Version(msgspec.Struct, frozen=True):
    """(line, epoch, step)."""

    line: str
    epoch: int
    step: int

    def __str__(self) -> str:
        return f"{self.line}/{self.epoch}/{self.step}"


class PartStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One part: the supervisor's view, its heartbeat, and its lag by topic (records not yet read)."""

    name: str
    state: str  # the supervisor's, "stalled", or "orphaned": it runs, but its supervisor is gone
    restarts: int = 0
    last_exit: int | None = None
    counters: dict[str, float] = {}
    rates: dict[str, float] = {}
    gauges: dict[str, float] = {}
    lag: dict[str, int] = {}
    failure: str = ""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that ``status --json`` says. None: not known."""

    state: str
    running: bool
    ready: bool
    cut: Version | None = None  # the last step that the sequencer has cut
    served: Version | None = None
    events_per_s: float | None = None
    examples_per_s: float | None = None
    click_to_session_p95_ms: float | None = None
    click_to_served_p95_ms: float | None = None
    restarts: int = 0
    dead_letters: int | None = None
    lost: dict[str, str] = {}  # parts that can't go on, and why: their log is lost
    exposed: list[str] = []  # ports open beyond loopback, as part:host:port
    parts: list[PartStatus] = []
    server: dict[str, Any] = {}  # as GET /v1/status answers


def gather(state: Path) -> Status:
    """Reads the run files, the log and the server. What can't be reached is left out, not an error."""
    running = runs.read(state)
    if running is None:
        return Status(state=str(state.resolve()), running=False, ready=False)
    config, _ = plans.read(state)
    up = alive(running.supervisor)
    beats = {part.name: read_beat(state / "run" / f"{part.name}.json") for part in running.parts}
    log = _opened(config) if up or config.log.url == "sqlite" else None
    try:
        server = server_status(config) if up else {}
        return judged(state, running, up, beats, log, server)
    finally:
        if log is not None:
            log.close()


def _opened(config: Config) -> Log | None:
    from recsys.process.open_log import open_log

    if config.log.url == "sqlite" and not (Path(config.state) / "log").is_dir():
        return None  # asking must not create one
    with suppress(Exception):  # a broker that is away is shown by its part
        return open_log(config)
    return None


def judged(
    state: Path,
    running: runs.Running,
    up: bool,
    beats: dict[str, Beat | None],
    log: Ends | None,
    server: dict[str, Any],
) -> Status:
    """What follows from what was read."""
    now_ms = int(time.time() * 1000)
    parts = [_part(part, beats[part.name], log, up, now_ms) for part in running.parts]
    by_name = {part.name: part for part in parts}
    fresh = {name: freshness(name, server, parts) for name in _FRESHNESS}
    return Status(
        state=str(state.resolve()),
        running=up,
        ready=up and running.ready and all(part.state != "stalled" for part in parts),
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


def _part(
    part: runs.PartRecord, beat: Beat | None, log: Ends | None, up: bool, now_ms: int
) -> PartStatus:
    orphaned = not up and part.process is not None and alive(part.process)
    state = part.state if up else "orphaned" if orphaned else "stopped"
    if beat is None:
        return PartStatus(
            name=part.name, state=state, restarts=part.restarts, last_exit=part.last_exit
        )
    if state == "ready" and beat.turned_ms and now_ms - beat.turned_ms > _STALLED_MS:
        state = "stalled"
    lag = {}
    if log is not None and up:
        for topic, offsets in beat.offsets.items():
            behind = waiting(log, topic, offsets)
            if behind is not None:
                lag[topic] = behind
    return PartStatus(
        name=part.name,
        state=state,
        restarts=part.restarts,
        last_exit=part.last_exit,
        counters=beat.counters,
        rates=beat.rates if up else {},
        gauges=beat.gauges if up else {},
        lag=lag,
        failure=beat.failure,
    )


def waiting(log: Ends, topic: str, offsets: list[int] | None) -> int | None:
    """The records between ``offsets`` (None: the beginning) and the end, over all partitions.

    Exact where offsets are dense, else an upper bound. None where the topic can't be asked.
    """
    try:
        count = log.partitions(topic)
        return sum(
            max(0, log.end(topic, p) - (log.begin(topic, p) if offsets is None else offsets[p]))
            for p in range(count)
        )
    except Exception:
        return None


def last_step(log: Ends) -> Version | None:
    """Of the newest record of ``steps``; None where there is none, or it can't be read."""
    with suppress(Exception):
        for record in newest_first(log, STEPS, 0):
            step = unpack(record.value, Step)
            return Version(step.line, step.epoch, step.step)
    return None


def server_status(config: Config) -> dict[str, Any]:
    """What the server says of itself; empty where it doesn't answer."""
    url = f"{plans.feed_url(config)}/v1/status"
    with suppress(OSError, ValueError, urllib.error.URLError):
        with urllib.request.urlopen(url, timeout=_HTTP_S) as answer:
            found = json.loads(answer.read())
            return found if isinstance(found, dict) else {}
    return {}


def version_in(server: dict[str, Any]) -> Version | None:
    """line, epoch and step: at the top of the server's answer, or in its ``stamp`` or ``version``."""
    for place in (server, server.get("stamp"), server.get("version")):
        if isinstance(place, dict):
            with suppress(msgspec.ValidationError):
                return msgspec.convert(place, Version)
    return None


def freshness(name: str, server: dict[str, Any], parts: list[PartStatus]) -> float | None:
    """A gauge of the server or of any part; the slowest, where several have it."""
    gauges = server.get("gauges")
    values = [place.get(name) for place in (server, gauges) if isinstance(place, dict)]
    values += [part.gauges.get(name) for part in parts]
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    return max(numbers, default=None)


def _first_rate(
    counter: str, names: tuple[str, ...], by_name: dict[str, PartStatus]
) -> float | None:
    for name in names:
        if name in by_name and counter in by_name[name].rates:
            return by_name[name].rates[counter]
    return None
