"""Doors of ``recsys bench serve``: the parts of a running system, and the bare app.

``parts`` starts Valkey, the Ray head and the Serve application as ``recsys up`` does, each as a part in a
session of its own, in the bench's state folder; ``uvicorn`` runs the same app object in one plain process.
Both end what they started, however the bench ends.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import msgspec
import psutil
import redis

from benchmarks.harness.worker_processes import Messages, reporting_errors
from recsys.clock import machine_ms
from recsys.config.system_config import Config, ParameterServerConfig
from recsys.process.latency_tuning import tune_for_latency
from recsys.process.open_log import open_log
from recsys.process.part_process import run_folder
from runtime.supervision import launch_plan as plans
from runtime.supervision.launch_plan import Plan
from runtime.supervision.processes import Child, Identity, end_sessions, members
from runtime.supervision.supervisor_loop import ONE_THREAD
from serving.http_app import build_app
from serving.service import Service
from serving.sessions.session_store import FoldPosition, RedisFoldStore, RedisSessions

REPLICA: Final = "ServeReplica Feed"  # in its command line; retrieval shards have another name
_READY_S: Final = 300.0
_GRACE_S: Final = 20.0
_LOOPBACK: Final = "127.0.0.1"
_DIRECT_PORTS: Final = range(30_000, 31_000)  # Serve's default
_FLUSHED: Final = "bench:flushed"
_FLUSH_MS: Final = 10_000


def check_platform() -> None:
    """Raises RuntimeError on a platform without the requirements of a whole system."""
    if sys.platform != "linux":
        raise RuntimeError(
            f"the platform is {sys.platform}, expected linux: HAProxy, epoll and /proc are needed; run this "
            "bench in a Linux machine or container"
        )


@contextmanager
def sigterm_as_exit() -> Iterator[None]:
    """Makes SIGTERM act as Ctrl-C, so that started processes end too."""

    def leave(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # timeout(1) sends it twice
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Limits kernels of started processes to one thread, as parts and replicas do."""
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def parts(config: Config, names: tuple[str, ...]) -> Iterator[dict[str, Child]]:
    """Runs parts of the plan in the state folder, each once the one before is ready. Raises RuntimeError when
    one fails."""
    folder, running = run_folder(config.state), dict[str, Child]()
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with ExitStack() as stack:  # parts end in reverse order, each regardless of the others
        for name in names:
            command = [sys.executable, "-m", "runtime.cli.part", name, config.state]
            output, beat = folder / f"{name}.out", folder / f"{name}.json"
            running[name] = Child(command, environment, output, beat)
            stack.callback(_end, running[name])
            _wait(name, running[name], folder)
        yield running


def _end(child: Child) -> None:
    end_sessions([child.identity], _GRACE_S)
    child.exit_status()  # reaps the process


def _wait(name: str, child: Child, folder: Path) -> None:
    until = time.monotonic() + _READY_S
    while (beat := child.beat()) is None or beat.state != "ready":
        status = child.exit_status()
        if status is not None or time.monotonic() > until:
            why = (beat and beat.failure) or f"exit status {status} within {_READY_S:.0f} s"
            output = (folder / f"{name}.out").read_text(errors="replace")[-2_000:]
            raise RuntimeError(f"part {name} of the bench isn't ready: {why}\n{output}")
        time.sleep(0.05)


def write_plan(config: Config) -> tuple[Config, Plan]:
    """Configuration with ports and secrets, and the plan, both written to the state folder for the parts. A
    thousand users, and the one address that they have, may ask for any number of lists."""
    doors = replace(config.doors, per_source=config.doors.connections)
    unlimited = replace(config, access=replace(config.access, user_lists=0), doors=doors)
    resolved, plan = plans.resolve(unlimited)
    plans.write(resolved, plan)
    return resolved, plan


def use_default_serve(config: Config, plan: Plan) -> None:
    """Rewrites the plan for Serve's default proxy and settings."""
    plans.write(config, msgspec.structs.replace(plan, plain_serve=True))


def fill_sessions(config: Config, sessions: dict[str, bytes]) -> None:
    """Writes sessions to the running store, as the fold would, and waits until they are on its disk, so that
    no answer waits for that."""
    log, fold = open_log(config), RedisFoldStore(config.sessions.url, config.sessions.ttl_s)
    place = FoldPosition(log.id, [0] * config.log.partitions, 0)
    fold.commit(fold.position(), place, sessions)
    fold.close()
    log.close()
    with redis.Redis.from_url(config.sessions.url) as client:
        client.set(_FLUSHED, 1)  # the command concerns what its own connection wrote
        client.execute_command("WAITAOF", 1, 0, _FLUSH_MS)
        client.delete(_FLUSHED)


def direct_port(pid: int) -> int:
    """Port of a replica's direct ingress: the listening port in Serve's range. Serve's own API names
    HAProxy's port only."""
    import psutil

    listening = [
        c.laddr.port for c in psutil.Process(pid).net_connections("tcp") if c.status == psutil.CONN_LISTEN
    ]
    ports: list[int] = [port for port in listening if port in _DIRECT_PORTS]
    if len(ports) != 1:
        raise RuntimeError(
            f"replica {pid} listens on {listening}, expected one of {_DIRECT_PORTS}: is direct ingress off?"
        )
    return ports[0]


def replica_pid(ray: Child) -> int:
    """Process of the replica, among those that the Ray head started."""
    for pid in members_matching(ray.identity, REPLICA):
        return pid
    raise RuntimeError("there is no replica among Ray's processes, expected one")


def served_step(port: int) -> int:
    """Model step of current answers."""
    import httpx

    status = httpx.get(f"http://{_LOOPBACK}:{port}/v1/status", timeout=10.0).json()
    return int(status["version"]["step"])


def memory_mb(pid: int) -> tuple[float, float]:
    """Current and peak resident memory of a process in MB."""
    sizes = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("VmRSS", "VmHWM"):
            sizes[name] = int(value.split()[0]) / 1_000
    return round(sizes["VmRSS"], 1), round(sizes["VmHWM"], 1)


def uvicorn(config: Config, port: int, messages: Messages, stop: Any) -> None:
    """Main function of a process: the same app behind uvicorn as Serve configures it, without Ray. It reports
    when it is ready."""
    import logging

    from uvicorn import Config as ServerConfig
    from uvicorn import Server

    with reporting_errors(messages, 1):
        logging.getLogger("recsys").setLevel(logging.WARNING)
        service = Service(config, open_log(config), RedisSessions(config.sessions.url), machine_ms)
        app = build_app(service, lambda: "", _READY_S, tune_for_latency)
        settings = ServerConfig(
            app, host=_LOOPBACK, port=port, access_log=False, log_level="warning", timeout_keep_alive=75
        )
        server = Server(settings)

        async def run() -> None:
            served = asyncio.create_task(server.serve())
            while not (service.ready and server.started) and not served.done():
                await asyncio.sleep(0.05)
            messages.put(("uvicorn", 1, os.getpid()))
            while not stop.is_set() and not served.done():
                await asyncio.sleep(0.2)
            server.should_exit = True
            await served

        import uvloop

        uvloop.run(run())


def bench_config(state: str, candidates: int) -> Config:
    """Configuration with one replica, one shard of the parameter server, and free ports."""
    base = Config()
    return replace(
        base,
        state=state,
        serve=replace(base.serve, port=0, dashboard_port=0, candidates=candidates),
        parameter_server=ParameterServerConfig(shards=1),
    )


def members_matching(leader: Identity, words: str) -> list[int]:
    """Members whose command line contains every one of these words."""
    pids = []
    for pid in members(leader):
        with suppress(psutil.Error):
            line = " ".join(psutil.Process(pid).cmdline())
            if all(word in line for word in words.split()):
                pids.append(pid)
    return pids
