"""Tables of ``recsys up`` and ``recsys status``: the parts, throughput, lag and addresses."""

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from rich.console import Group
from rich.text import Text

from recsys.clock import machine_ms
from recsys.config.system_config import Config
from recsys.events.control_records import LineHold
from recsys.observability.catching_up import said
from recsys.observability.log_lines import redact
from recsys.process.disk_budget import GB, LOG, Level, Space
from recsys.process.part_process import read_beat
from runtime.parts.serve import SHARDS_AWAY
from runtime.reports.tables import plain_table
from runtime.supervision.launch_plan import CONTROL_KEY, control_room_url, public_url
from runtime.supervision.processes import Socket
from runtime.supervision.ray_environment import dashboard_address
from runtime.supervision.run_file import PartRecord, Running
from runtime.supervision.system_status import Status
from serving.access.hosts import is_loopback, is_open

_COLOURS: Final = {
    "ready": "green", "done": "green", "starting": "yellow", "waiting": "dim", "backoff": "red",
    "stopping": "yellow", "stopped": "dim", "lost": "red", "unchecked": "red",
}  # fmt: skip
_EFFECTS: Final = {
    Level.LOW: "nothing is archived, and the archive's oldest hours go",
    Level.LOWER: "nothing is archived, and old deltas go",
    Level.FULL: "events are refused",
}
# These programs answer only calls with the cluster's token.
_TOKEN_GUARDED: Final = ("gcs_server", "raylet")


def status_table(status: Status, running: Running, config: Config) -> Group:
    """Lays out everything that ``recsys status`` prints."""
    flow = []
    for part in status.parts:
        rates = " ".join(f"{name} {rate:,.1f}" for name, rate in sorted(part.rates.items()))
        lag = " ".join(f"{topic} {count:,}" for topic, count in sorted(part.lag.items()))
        if rates or lag or part.state == "stalled":
            flow.append((part.name, rates, lag + " STALLED" * (part.state == "stalled")))
    facts = [
        ("model", f"cut {status.cut or 'none: waiting for events'}, served {status.served or '–'}"),
        ("answers", _answers(status.server)),
        ("events/s", _number(status.events_per_s)),
        ("examples/s", _number(status.examples_per_s)),
        ("click → session", _milliseconds(status.click_to_session_p95_ms)),
        ("click → served", _milliseconds(status.click_to_served_p95_ms)),
        ("dead letters", _number(status.dead_letters)),
    ]
    if not config.clock.is_machine and (time_ms := status.server.get("time_ms")):
        moment = datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(" ", "seconds")
        facts.insert(0, ("event time", f"{moment}, clock.speed {config.clock.speed:g}"))
    if status.space is not None:
        facts.append(("disk", _disk(status.space)))
    if status.change:
        facts.append(("features", status.change))
    if status.hold is not None:
        facts.append(("line held", _hold(status.hold)))
    facts += [("drift", text) for part in status.parts if (text := _drift(part.gauges))]
    lines = [Text(f"{name:<16} {value}") for name, value in facts]
    if status.space is not None and status.space.level:
        effect = _EFFECTS[status.space.level]
        text = f"disk space is low: {status.space.why}; {effect}"
        lines.insert(0, Text(text, style="red" if status.space.level is Level.FULL else "yellow"))
    if status.holders:
        text = f"topics can't shrink to their share of the disk: {'; '.join(status.holders)}"
        lines.insert(0, Text(text, style="yellow"))
    for name, why in status.lost.items():
        lines.insert(0, Text(f"LOST: {name}: {why}", style="red"))
    if status.stale:
        ago = format_duration(machine_ms() - running.time_ms)
        text = f"the supervisor has written nothing for {ago}: it hangs, or its disk fails"
        lines.insert(0, Text(text, style="red"))
    if away := sum(part.gauges.get(SHARDS_AWAY, 0) for part in status.parts):
        text = f"retrieval: {away:.0f} shards are down; lists lack their items"
        lines.insert(0, Text(text, style="red"))
    if (unproven := sum(part.rates.get("unproven", 0.0) for part in status.parts)) >= 0.1:
        text = f"{unproven:,.1f} engagements/s teach nothing: their clients send no valid token"
        lines.insert(0, Text(text, style="yellow"))
    for part in status.parts:
        if names := part.names.get("quarantined"):
            more = ", …" * (part.gauges["quarantined"] > len(names))
            text = f"{part.gauges['quarantined']:.0f} users in quarantine: {', '.join(names)}{more}"
            lines.insert(0, Text(text, style="yellow"))
    for part in status.parts:
        if text := said(part.catching_up):
            lines.insert(0, Text(f"{part.name} is {text}", style="yellow"))
    if damaged := sum(part.gauges.get("snapshots_damaged", 0) for part in status.parts):
        text = f"{damaged:.0f} snapshots are damaged; `recsys check {config.state}` names them"
        lines.insert(0, Text(text, style="red"))
    if status.running:
        flow_table = plain_table(("part", "per second", "behind"), flow)
        return Group(parts_table(running, config), Text(""), flow_table, Text(""), *lines)
    ago = format_duration(machine_ms() - running.time_ms)
    lines.insert(0, Text(f"not running (last seen {ago} ago)", style="yellow"))
    if orphaned := [part.name for part in status.parts if part.state == "orphaned"]:
        text = f"left without a supervisor: {', '.join(orphaned)}; `recsys up` or `down` ends them"
        lines.insert(1, Text(text, style="red"))
    return Group(*lines)


def _disk(space: Space) -> str:
    kinds = Counter[str]()
    for kind, size in space.kinds.items():
        kinds["log" if kind.startswith(LOG) else kind] += size
    parts = ", ".join(f"{kind} {size / GB:.1f}" for kind, size in kinds.most_common(3))
    return (
        f"{space.used / GB:.1f} of {space.budget / GB:g} GB ({parts}), {space.free / GB:.1f} GB free: "
        f"{space.level.name.lower()}"
    )


def parts_table(running: Running, config: Config) -> Group:
    """Lists parts, states and ports, and below them the system's addresses."""
    now_ms = machine_ms()
    rows = (
        (
            part.name,
            Text(part.state, style=_COLOURS.get(part.state, "")),
            format_duration(now_ms - part.since_ms),
            str(part.restarts) if part.restarts else "",
            Text(ports(part.sockets)),
            Text(note(part, Path(config.state))),
        )
        for part in running.parts
    )
    columns = ("part", "state", "for", "restarts", "listens on", "note")
    table = plain_table(columns, rows, right=("for", "restarts"))
    return Group(table, Text(""), *(Text(line) for line in addresses(config)))


def addresses(config: Config) -> list[str]:
    """Lists the addresses of feed, control room, dashboard, session store and log."""
    serve, room = config.serve, control_room_url(config).partition("#")[0]
    key = f"{config.state}/run/{CONTROL_KEY}"
    return [
        f"feed       {public_url(config)}",
        *([f"control    {room}  (key in {key})"] if room else []),
        *([f"dashboard  {dashboard_address(config)}"] if serve.dashboard else []),
        f"sessions   {redact(config.sessions.url)}",
        f"log        {redact(config.log.url)}"
        + (f" in {config.state}/log" if config.log.url == "sqlite" else ""),
    ]


def exposure_warning(config: Config) -> str:
    """Warns that other machines reach the API, and which calls need a key; empty on loopback."""
    host, port = config.serve.host, config.serve.port
    if is_loopback(host):
        return ""
    if is_open(config):
        guard = "calls without a key may recommend, events, read; access.mode=keys ends that"
    else:
        guard = f"every call needs a key: `recsys keys add`, or {config.state}/run/admin.key"
    return f"the API answers beyond loopback, on {host}:{port}: {guard}"


def ports(sockets: list[Socket]) -> str:
    """Lists at most four loopback ports by number, and every other one with its protection."""
    inside = sorted({socket.port for socket in sockets if socket.loopback})
    shown = [str(port) for port in inside[:4]] + (["…"] if len(inside) > 4 else [])
    return " ".join(shown + [exposed_port(socket) for socket in sockets if not socket.loopback])


def exposed_port(socket: Socket) -> str:
    """Describes a port that other machines reach."""
    guard = "guarded by token" if socket.program in _TOKEN_GUARDED else "OPEN to other machines"
    return f"{socket.host}:{socket.port} ({guard})"


def note(part: PartRecord, state: Path) -> str:
    """Explains why a part isn't ready, or how it last failed."""
    if part.state == "lost":
        return part.reason
    reason = part.reason if part.state not in ("ready", "done", "stopped") else ""
    if part.last_exit in (None, 0) and part.state != "backoff":
        return reason
    beat = read_beat(state / "run" / f"{part.name}.json")
    failure = beat.failure if beat is not None else ""
    last_exit = f"last exit {part.last_exit}" if part.last_exit is not None else ""
    reason = "" if reason in (failure, f"exit {part.last_exit}") else reason
    return "; ".join(filter(None, (reason, last_exit, failure)))


def format_duration(milliseconds: int) -> str:
    """Formats a duration: 7s, 3m12s, 2h05m."""
    seconds = max(0, milliseconds) // 1000
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"


def _hold(hold: LineHold) -> str:
    effects = {"rollback": "what it replaced serves", "rewind": "its state of that time serves"}
    effect = effects.get(hold.action, "it goes on: nothing better can serve")
    since = datetime.fromtimestamp(hold.since_ms / 1000, UTC).isoformat(" ", "seconds")
    return f"{hold.line}/{hold.epoch} since {since}: {hold.reason}; {effect}"


def _drift(gauges: dict[str, float]) -> str:
    """The director's number of drift alarms; empty for any other part."""
    return f"{gauges['alarms']:.0f} alarms" if "alarms" in gauges else ""


def _answers(server: dict[str, Any]) -> str:
    p50, p99 = (_number(server.get(f"answer_{share}_ms")) for share in ("p50", "p99"))
    return f"{_number(server.get('answers'))}, {p50} ms (p50), {p99} ms (p99)"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.1f}".removesuffix(".0")


def _milliseconds(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f} ms (p95)"
