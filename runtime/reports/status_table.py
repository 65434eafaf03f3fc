"""The table of parts, as ``up`` and ``status`` print it."""

import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from rich.console import Group
from rich.table import Table
from rich.text import Text

from recsys.config.system_config import Config
from recsys.process.part_process import read_beat
from runtime.supervision.launch_plan import CONTROL_KEY, control_room_url, feed_url
from runtime.supervision.processes import Socket, is_loopback
from runtime.supervision.run_file import PartRecord, Running

_COLOURS: Final = {
    "ready": "green", "done": "green", "starting": "yellow", "waiting": "dim", "backoff": "red",
    "stopping": "yellow", "stopped": "dim", "lost": "red",
}  # fmt: skip
# These answer calls that carry the cluster's token only.
_GUARDED: Final = ("gcs_server", "raylet")


def parts_table(running: Running, config: Config, now_ms: int | None = None) -> Group:
    """Parts, states and ports, and below them where to look."""
    now_ms = int(time.time() * 1000) if now_ms is None else now_ms
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("part", "state", "for", "restarts", "listens on", "note"):
        table.add_column(column, justify="right" if column in ("for", "restarts") else "left")
    for part in running.parts:
        table.add_row(
            part.name,
            Text(part.state, style=_COLOURS.get(part.state, "")),
            duration(now_ms - part.since_ms),
            str(part.restarts) if part.restarts else "",
            Text(ports(part.sockets)),
            Text(note(part, Path(config.state))),
        )
    return Group(table, Text(""), *(Text(line) for line in addresses(config)))


def addresses(config: Config) -> list[str]:
    """Where a person looks next."""
    serve, room = config.serve, control_room_url(config).partition("#")[0]
    key = f"{config.state}/run/{CONTROL_KEY}"
    dashboard = [
        f"dashboard  http://127.0.0.1:{serve.dashboard_port}  (Ray's; token in {config.state}/run/ray.token)"
    ]
    return [
        f"feed       {feed_url(config)}",
        *([f"control    {room}  (key in {key})"] if room else []),
        *(dashboard if serve.dashboard else ()),
        f"sessions   {hide_password(config.sessions.url)}",
        f"log        {hide_password(config.log.url)}"
        + (f" in {config.state}/log" if config.log.url == "sqlite" else ""),
    ]


def said_beyond_loopback(config: Config) -> str:
    """One line on who else reaches the API, and what guards it; empty where nobody else does."""
    serve = config.serve
    with suppress(ValueError):  # a name
        if is_loopback(serve.host):
            return ""
    if serve.host == "localhost":
        return ""
    return (
        f"the API answers beyond loopback, on {serve.host}:{serve.port}: admin routes need the key in "
        f"{config.state}/run/admin.key (it is set), viewers' routes none"
    )


def hide_password(url: str) -> str:
    return re.sub(r"(?<=://)[^/@\s]*@", "***@", url)


def ports(sockets: list[Socket]) -> str:
    """Loopback ports by number (at most four); any other with what guards it."""
    inside = sorted({socket.port for socket in sockets if socket.loopback})
    shown = [str(port) for port in inside[:4]] + (["…"] if len(inside) > 4 else [])
    return " ".join(shown + [beyond(socket) for socket in sockets if not socket.loopback])


def beyond(socket: Socket) -> str:
    guard = "guarded by token" if socket.program in _GUARDED else "OPEN to other machines"
    return f"{socket.host}:{socket.port} ({guard})"


def note(part: PartRecord, state: Path) -> str:
    """Why a part isn't ready, or what it last died of."""
    if part.state == "lost":
        return part.reason
    said = part.reason if part.state not in ("ready", "done", "stopped") else ""
    if part.last_exit not in (None, 0) or part.state == "backoff":
        beat = read_beat(state / "run" / f"{part.name}.json")
        failure = beat.failure if beat is not None else ""
        died = f"last exit {part.last_exit}" if part.last_exit is not None else ""
        said = "; ".join(
            filter(None, (said if said != f"exit {part.last_exit}" else "", died, failure))
        )
    return said


def duration(milliseconds: int) -> str:
    """7s, 3m12s, 2h05m."""
    seconds = max(0, milliseconds) // 1000
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
