"""What one ``recsys up`` runs: the configuration with real addresses in it, ports, and secrets in files.

Everything stands in ``state/run``, readable by its owner only, before the first part starts; each part reads
it from there.
"""

import secrets
import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec

from recsys.config.system_config import Config, digest
from recsys.process.part_process import run_folder, write_atomically
from runtime.supervision.processes import holders

_LOOPBACK: Final = "127.0.0.1"
CONTROL_KEY: Final = "control.key"  # of the control room, in ``state/run``
EMBEDDED_KAFKA: Final = "kafka://"  # without an address: a broker of our own
VALKEY_USER: Final = "recsys"
CONTROL_ROOM_PORT: Final = 8001  # of who asks for one and names no port, where it is free
_FIRST_PORT: Final = 20_000  # of the range that free ports are taken from: below what systems give
_LAST_PORT: Final = 29_999  # to outgoing connections, and above Ray's own defaults


class RayPorts(msgspec.Struct, frozen=True):
    """The ports of a Ray head and of what Serve adds. Workers take any port, by themselves."""

    gcs: int
    node_manager: int
    object_manager: int
    client: int
    agent_http: int
    agent_grpc: int
    runtime_env: int
    metrics: int
    autoscaler_metrics: int
    dashboard_metrics: int
    haproxy_stats: int
    haproxy_metrics: int
    fallback_proxy: int
    fallback_grpc: int


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to run. ``embedded`` names the services that we start ourselves."""

    ray: RayPorts
    embedded: list[str] = []  # of "valkey", "broker", "ray"
    viewers: float = 0.0  # requests a second of simulated viewers; 0: none
    metrics: bool = False  # whether the parts' metrics are served
    control_room: bool = False
    only: list[str] = []  # these parts and what they need; empty: all
    asked: str = ""  # digest of the configuration before anything was filled in
    plain_serve: bool = False  # Serve as it comes, with its own proxy: what the bench compares with

    @property
    def owns_ray(self) -> bool:
        """Whether the Ray cluster is ours; else others may use it too."""
        return "ray" in self.embedded


class PortTaken(RuntimeError):
    """A port that is needed is in use: which, for what, by whom."""


def resolve(
    config: Config, *, viewers: float = 0.0, only: Iterable[str] = (), ray_address: str = "",
    control_room: bool = False,
) -> tuple[Config, Plan]:  # fmt: skip
    """Fills in addresses and free ports. A port 0 of ``serve`` takes a free one.

    ``ray_address`` is that of a cluster which runs already (RAY_ADDRESS): then we start none.
    ``control_room``: there is one also where no port is configured. Raises
    PortTaken where a port that the configuration names is in use, ValueError where several nodes are
    asked for and no cluster runs.
    """
    if config.nodes > 1 and not ray_address:
        raise ValueError(
            f"nodes is {config.nodes}, but RAY_ADDRESS is empty: start a Ray cluster and set "
            "RAY_ADDRESS to it, or set nodes to 1"
        )
    asked = digest(config)
    named = {"serve.port": config.serve.port, "serve.dashboard_port": config.serve.dashboard_port}
    named |= {"metrics.port": config.metrics.port} if config.metrics.port else {}
    if config.control_room.port:
        named["control_room.port"] = config.control_room.port
    if not ray_address:  # in a cluster of others Serve may run already, and have its port
        _check_free({name: port for name, port in named.items() if port})
    free = _free_ports(avoid=set(named.values()))
    serve = replace(
        config.serve,
        port=config.serve.port or next(free),
        dashboard_port=config.serve.dashboard_port or next(free),
    )
    room = config.control_room
    if control_room and not room.port:
        usual = CONTROL_ROOM_PORT not in named.values() and _can_bind(CONTROL_ROOM_PORT)
        room = replace(room, port=CONTROL_ROOM_PORT if usual else next(free))
    embedded = [] if ray_address else ["ray"]
    sessions, log = config.sessions, config.log
    if sessions.url == "embedded":
        embedded.append("valkey")
        # A port on loopback is open to everyone on the machine.
        password = secrets.token_urlsafe(32)
        url = f"redis://{VALKEY_USER}:{password}@{_LOOPBACK}:{next(free)}/0"
        sessions = replace(sessions, url=url)
    if log.url == EMBEDDED_KAFKA:
        embedded.append("broker")
        log = replace(log, url=f"{EMBEDDED_KAFKA}{_LOOPBACK}:{next(free)}")
    state = str(Path(config.state).resolve())
    ray = RayPorts(*(next(free) for _ in RayPorts.__struct_fields__))
    tracing = config.tracing
    if tracing.file:  # Ray's workers have folders of their own
        tracing = replace(tracing, file=str(Path(tracing.file).resolve()))
    config = replace(
        config, state=state, serve=serve, sessions=sessions, log=log, tracing=tracing,
        control_room=room,
    )  # fmt: skip
    plan = Plan(
        ray=ray, embedded=embedded, viewers=viewers, metrics=bool(config.metrics.port),
        control_room=bool(room.port),
        only=list(only), asked=asked,
    )  # fmt: skip
    return config, plan


def feed_url(config: Config) -> str:
    """Where this machine reaches the API: over loopback where it binds to all interfaces."""
    return _url(config.serve.host, config.serve.port)


def control_room_url(config: Config) -> str:
    """Where this machine reaches the control room, with its key behind the #, which a browser sends nowhere;
    empty where there is none."""
    room, file = config.control_room, Path(config.state) / "run" / CONTROL_KEY
    if not room.port or not file.exists():
        return ""
    return f"{_url(room.host, room.port)}/control#{file.read_text().strip()}"


def _url(host: str, port: int) -> str:
    host = {"0.0.0.0": _LOOPBACK, "::": "::1"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def port_of(url: str) -> int:
    """The port of ``redis://host:port/db`` or ``kafka://host:port``."""
    return int(url.rpartition("://")[2].partition("/")[0].rpartition(":")[2])


def _check_free(named: dict[str, int]) -> None:
    held = holders(named.values())
    for name, port in named.items():
        if port in held or not _can_bind(port):
            variable = "RECSYS__" + name.upper().replace(".", "__")
            raise PortTaken(
                f"port {port} ({name}) is in use by {held.get(port, 'a process that is not visible')}: "
                f"end it, or choose another port with {variable}=..."
            )


def _free_ports(avoid: set[int]) -> Iterator[int]:
    """Ports on which nothing listens now. They start at a random place, so that two systems seldom meet."""
    size = _LAST_PORT - _FIRST_PORT + 1
    first = secrets.randbelow(size)
    for step in range(size):
        port = _FIRST_PORT + (first + step) % size
        if port not in avoid and _can_bind(port):
            yield port
    raise PortTaken(f"no free port from {_FIRST_PORT} to {_LAST_PORT}")


def _can_bind(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):
            probe.bind((_LOOPBACK, port))
            return True
    return False


def write(config: Config, plan: Plan) -> None:
    """Writes configuration, plan and secrets to ``state/run``; secrets that stand already are kept."""
    folder = run_folder(config.state)
    write_atomically(folder / "config.json", msgspec.json.encode(config))
    write_atomically(folder / "plan.json", msgspec.json.encode(plan))
    for name in ("admin.key", CONTROL_KEY, "ray.token"):
        if not (folder / name).exists():
            write_atomically(folder / name, secrets.token_urlsafe(32).encode())


def read(state: str | Path) -> tuple[Config, Plan]:
    """What ``write`` wrote. Raises FileNotFoundError, saying what to do, where nothing was started."""
    folder = Path(state) / "run"
    try:
        config = msgspec.json.decode((folder / "config.json").read_bytes(), type=Config)
        plan = msgspec.json.decode((folder / "plan.json").read_bytes(), type=Plan)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"nothing was started in {Path(state).resolve()}: run `recsys up --state {state}` first"
        ) from None
    return config, plan
