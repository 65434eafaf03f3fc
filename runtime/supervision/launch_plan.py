"""The launch plan of ``recsys up``: the configuration with real addresses, free ports, and secrets.

All of it is written to ``STATE/run``, readable by its owner only, before the first part starts; each part
reads it from there.
"""

import secrets
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Final

import msgspec

from parameter_server.storage.wal import sync_folder
from recsys.config.loader import ConfigError, variable_of
from recsys.config.system_config import Config, digest, named_ports, override
from recsys.free_ports import PortTaken, can_bind, free_ports
from recsys.log.protocol import Log, LogUnavailable
from recsys.process.open_log import open_log
from recsys.process.part_process import run_folder, write_atomically
from runtime.supervision.processes import holders
from serving.access.hosts import is_loopback
from serving.access.key_files import ADMIN_KEY, DOOR_KEY, SOURCE_KEY, TOKEN_KEYS

_LOOPBACK: Final = "127.0.0.1"
RAY_TOKEN: Final = "ray.token"  # in ``STATE/run``
CONTROL_KEY: Final = "control.key"  # the control room's key file, in ``STATE/run``
EMBEDDED_KAFKA: Final = "kafka://"  # no address: starts an embedded broker
VALKEY_USER: Final = "recsys"
CONTROL_ROOM_PORT: Final = 8001  # default of `recsys demo`, if it is free
CREDENTIALS: Final = (  # files that each machine of a system reads
    "doors.certificate", "log.ca_file", "log.cert_file", "log.key_file", "log.password_file",
    "parameter_server.ca_file", "parameter_server.cert_file", "parameter_server.key_file",
    "parameter_server.client_ca_file",
)  # fmt: skip


class RayPorts(msgspec.Struct, frozen=True):
    """Ports of the Ray head and of Ray Serve. Ray workers choose their ports themselves."""

    gcs: int
    node_manager: int
    object_manager: int
    agent_http: int
    agent_grpc: int
    runtime_env: int
    metrics: int
    dashboard_metrics: int


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Choice of parts to run, with the ports that were chosen for them."""

    ray: RayPorts
    embedded: list[str] = []  # services that the system starts itself: "valkey", "broker", "ray"
    viewers: float = 0.0  # requests per second of simulated viewers; 0: none
    metrics: bool = False  # whether to serve the parts' metrics
    control_room: bool = False
    sentinel: bool = False  # whether a rule holds users who manipulate items
    only: list[str] = []  # these parts and their dependencies; empty: all
    # Of the configuration before addresses were filled in.
    config_digest: str = ""
    own_nodes: bool = False  # whether `recsys node` started the nodes of a running cluster
    ray_address: str = ""  # of a running cluster's GCS
    plain_serve: bool = False  # Ray Serve with its default proxy: the baseline of a benchmark

    @staticmethod
    def of_one_process() -> "Plan":
        """The plan of a system that starts no other process."""
        return Plan(ray=RayPorts(*(0 for _ in RayPorts.__struct_fields__)))

    @property
    def owns_ray(self) -> bool:
        """Whether this system started the Ray cluster; otherwise other applications may share it."""
        return "ray" in self.embedded

    @property
    def hooked(self) -> bool:
        """Whether Ray's workers run ``runtime.parts.ray_worker``, which brings HAProxy."""
        return self.owns_ray or self.own_nodes


def resolve(
    config: Config, *, viewers: float = 0.0, only: Iterable[str] = (), ray_address: str = "",
    control_room: bool = False,
) -> tuple[Config, Plan]:  # fmt: skip
    """Fills in addresses and free ports. Port 0 in ``serve`` means any free port.

    ``ray_address`` is the address of a running cluster (RAY_ADDRESS); without one the plan starts Ray.
    ``control_room`` plans one even where no port is configured for it. Raises PortTaken where a configured
    port is in use, and as ``check_exposure``.
    """
    asked, is_cluster = digest(config), ray_address or config.nodes > 1
    if config.nodes > 1 and config.serve.host == _LOOPBACK:
        config = replace(config, serve=replace(config.serve, host="0.0.0.0"))
    check_exposure(config)
    named = named_ports(config)
    if not is_cluster:  # in an existing cluster Serve may already run, and hold its port
        _check_free(named)
    free = free_ports(avoid=set(named.values()))
    serve = replace(
        config.serve,
        port=config.serve.port or next(free),
        dashboard_port=config.serve.dashboard_port or next(free),
    )
    room = config.control_room
    if control_room and not room.port:
        is_free = CONTROL_ROOM_PORT not in named.values() and can_bind(CONTROL_ROOM_PORT)
        room = replace(room, port=CONTROL_ROOM_PORT if is_free else next(free))
    config = replace(config, serve=serve, control_room=room)
    config, services = _with_embedded_services(config, free)
    embedded = ([] if is_cluster else ["ray"]) + services
    ray = RayPorts(*(next(free) for _ in RayPorts.__struct_fields__))
    config = _with_absolute_paths(config)
    if config.doors.certificate:
        local_port = config.doors.local_port or next(free)
        config = replace(config, doors=replace(config.doors, local_port=local_port))
    plan = Plan(
        ray=ray, embedded=embedded, viewers=viewers, metrics=bool(config.metrics.port),
        control_room=bool(room.port),
        sentinel=config.bounds.hold_nats > 0,
        only=list(only), config_digest=asked,
    )  # fmt: skip
    return config, plan


def _with_embedded_services(config: Config, free: Iterator[int]) -> tuple[Config, list[str]]:
    """The configuration with addresses of the services that the system starts itself, and their names."""
    embedded, sessions, log = list[str](), config.sessions, config.log
    if sessions.url == "embedded":
        embedded.append("valkey")
        # Every user of the machine can connect to a loopback port.
        password = secrets.token_urlsafe(32)
        url = f"redis://{VALKEY_USER}:{password}@{_LOOPBACK}:{next(free)}/0"
        sessions = replace(sessions, url=url)
    if log.url == EMBEDDED_KAFKA:
        embedded.append("broker")
        log = replace(log, url=f"{EMBEDDED_KAFKA}{_LOOPBACK}:{next(free)}")
    return replace(config, sessions=sessions, log=log), embedded


def _with_absolute_paths(config: Config) -> Config:
    """The configuration with absolute paths, since Ray's workers run in other folders."""
    files = {n: file for n in (*CREDENTIALS, "tracing.file") if (file := attrgetter(n)(config))}
    # Links are kept: they may lead elsewhere once a certificate is renewed.
    paths = {name: str(Path(file).absolute()) for name, file in files.items()}
    absolute: Config = override(config, paths)
    return replace(absolute, state=str(Path(config.state).resolve()))


def admin_headers(state: str | Path) -> dict[str, str]:
    """Header with the admin key, for calls of the system's own tools; none without its file."""
    with suppress(OSError):
        return {"x-admin-key": (Path(state) / "run" / ADMIN_KEY).read_text().strip()}
    return {}


def check_exposure(config: Config) -> None:
    """Raises ConfigError where an API without keys would answer to other machines under any name."""
    access, host = config.access, config.serve.host
    if access.mode == "open" and not is_loopback(host) and not access.hosts:
        raise ConfigError(
            f"access.mode is 'open' and serve.host is {host!r}: anybody could call the API; set "
            "access.mode to keys, or name the hosts that it answers to in access.hosts"
        )


def local_api_url(config: Config) -> str:
    """Local URL of the API for the system's own tools: without TLS, on loopback where it binds to all
    interfaces."""
    if config.doors.certificate:
        return _url(_LOOPBACK, config.doors.local_port)
    return _url(config.serve.host, config.serve.port)


def public_url(config: Config) -> str:
    """URL of the API for a browser on this machine."""
    url = _url(config.serve.host, config.serve.port)
    return url.replace("http", "https", 1) if config.doors.certificate else url


def control_room_url(config: Config) -> str:
    """Local URL of the control room, empty where it is off.

    Its key is in the fragment (after the #), which browsers never send.
    """
    room, file = config.control_room, Path(config.state) / "run" / CONTROL_KEY
    if not room.port or not file.exists():
        return ""
    return f"{_url(room.host, room.port)}/control#{file.read_text().strip()}"


def _url(host: str, port: int) -> str:
    host = {"0.0.0.0": _LOOPBACK, "::": "::1"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def log_url(log: str) -> str:
    """Expands ``kafka`` to the URL of an embedded broker."""
    return EMBEDDED_KAFKA if log == "kafka" else log


def port_of(url: str) -> int:
    """Port of ``redis://host:port/db`` or ``kafka://host:port``."""
    return int(url.rpartition("://")[2].partition("/")[0].rpartition(":")[2])


def _check_free(named: dict[str, int]) -> None:
    listeners = holders(named.values())
    for name, port in named.items():
        if port in listeners or not can_bind(port):
            variable = variable_of(name)
            raise PortTaken(
                f"port {port} ({name}) is in use by {listeners.get(port, 'a process that is not visible')}: "
                f"end it, or choose another port with {variable}=..."
            )


def write(config: Config, plan: Plan) -> None:
    """Writes configuration, plan and secrets to ``STATE/run``; keeps existing secrets."""
    folder = run_folder(config.state)
    write_atomically(folder / "config.json", msgspec.json.encode(config), sync=True)
    write_atomically(folder / "plan.json", msgspec.json.encode(plan), sync=True)
    for name in (ADMIN_KEY, CONTROL_KEY, RAY_TOKEN, TOKEN_KEYS, SOURCE_KEY, DOOR_KEY):
        make_secret(folder / name)


def make_secret(file: Path) -> None:
    """Writes a random secret, unless the file has one: a power cut may have emptied it."""
    if not file.exists() or not file.read_bytes().strip(b"\0\n "):
        write_atomically(file, secrets.token_urlsafe(32).encode(), sync=True)
        sync_folder(file.parent)


def read(state: str | Path) -> tuple[Config, Plan]:
    """Reads back what ``write`` wrote. Raises FileNotFoundError, with a remedy, where nothing was started."""
    folder = Path(state) / "run"
    try:
        config = msgspec.json.decode((folder / "config.json").read_bytes(), type=Config)
        plan = msgspec.json.decode((folder / "plan.json").read_bytes(), type=Plan)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"nothing was started in {Path(state).resolve()}: run `recsys up --state {state}` first"
        ) from None
    return config, plan


@contextmanager
def open_system(state: Path) -> Iterator[tuple[Config, Log]]:
    """Opens configuration and log of a running or stopped system, whose folder may have been moved."""
    config = replace(read(state)[0], state=str(state.resolve()))
    with closing(open_log(config)) as log:
        yield config, log


@contextmanager
def open_log_if_any(state: str | Path) -> Iterator[Log | None]:
    """Opens the log of a state folder; None where only its archive is left, or its broker is down."""
    with ExitStack() as stack:
        log = None
        with suppress(FileNotFoundError, LogUnavailable):
            _, log = stack.enter_context(open_system(Path(state)))
        yield log
