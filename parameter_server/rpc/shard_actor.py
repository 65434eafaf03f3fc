"""Shards as named, detached Ray actors: Ray places and restarts them; rows travel over their own sockets."""

import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, Final

import numpy as np
import ray

from parameter_server.rpc.parameter_client import ShardedClient, WorkerId, hello
from parameter_server.rpc.shard_service import ShardService
from parameter_server.rpc.shard_tls import LOOPBACK, open_tls
from parameter_server.rpc.transport import Address, SocketChannel, SocketServer, Tls
from parameter_server.shard.shard import ShardSpec, part_of
from parameter_server.storage.durable_shard import DurableShard
from parameter_server.storage.reshard import Resharded, reshard_line
from parameter_server.storage.shard_home import delta_publisher, files_of, home_of
from parameter_server.table.dense import Vector
from parameter_server.table.kernels import warm
from recsys.config.system_config import Config
from recsys.observability.log_lines import keep_newest, log_in_worker
from recsys.observability.tracer import open_tracer
from recsys.process.malloc_tuning import BESIDE_TABLES, keep_freed_memory
from recsys.process.open_log import open_log

NAMESPACE = "recsys"
_CPUS: Final = 0.1
_CALLS: Final = 64  # concurrent ones: each waiting worker takes one
_PIECE: Final = 64 << 10  # bytes; Ray takes up to 100 KB into a call
_LOGS: Final = 32  # log files kept per part: three of each of ten live lines
_LOG: Final = logging.getLogger(__name__)


class ShardActor:
    """Ray actor of one shard: a ``DurableShard`` and its ``ShardService`` behind a socket."""

    def __init__(self, spec: ShardSpec, config: Config, *dense: bytes) -> None:
        """``dense``: initial parameters of part 0, in pieces."""
        self._spec = spec
        log_as(spec, config)
        host = LOOPBACK if config.nodes == 1 else node_address()
        tls = open_tls(config.parameter_server, host)  # before what it can't serve is opened
        warm()
        keep_freed_memory(BESIDE_TABLES)
        self._tracer = open_tracer(config, "shards", str(spec.part))
        initial = np.frombuffer(b"".join(dense), np.float32) if dense else None
        self._shard = DurableShard(
            spec, home_of(spec, config), delta_publisher(open_log(config), spec.line, self._tracer),
            initial, background=True,
        )  # fmt: skip
        self._service = ShardService(self._shard, secrets.token_hex(16))
        self._server = SocketServer(self._service, host, tls=tls.shard)

    def __repr__(self) -> str:
        spec = self._spec
        return f"Shard({spec.line}/{spec.epoch}, {spec.part + 1} of {spec.parts})"

    def address(self) -> Address:
        """Current address; port and token change with each restart."""
        return self._server.address

    def status(self) -> dict[str, Any]:
        """Figures of the shard. Called about once a second, it also retries a failed publication, so that a
        delta goes out once the log is back even without a further step."""
        status = self._shard.status()
        if status["unpublished"]:
            self._service.publish()
            status = self._shard.status()
        tracer = self._tracer
        spans = {"spans_sent": tracer.sent, "spans_dropped": tracer.dropped} if tracer else {}
        server = self._server
        sockets = {"connections": server.connections, "refused_connections": server.refused}
        return status | sockets | spans

    def digest(self) -> str:
        return self._shard.digest()

    def snapshot(self) -> None:
        self._shard.snapshot()

    def abandon(self) -> None:
        """Releases the workers of an epoch that the line has left."""
        self._service.abandon()

    def stop(self) -> None:
        """Takes a last snapshot if needed and closes everything; kill the actor afterwards."""
        self._server.close()
        self._shard.stop()
        if self._tracer:
            self._tracer.close()


def node_address() -> str:
    """Address by which other nodes reach this one."""
    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]


def log_as(spec: ShardSpec, config: Config) -> None:
    """Logs to this shard's own file; removes the oldest files of former lines and epochs."""
    keep_newest(config.state, "shard-*.log*", _LOGS * spec.parts)
    fields = {"shard": spec.part, "line": spec.line, "epoch": spec.epoch}
    name = f"shard-{spec.line}-{spec.epoch}-{spec.part}"
    log_in_worker("shards", config.state, name, config.logging.format, fields)


def stop_and_reshard(spec: ShardSpec, config: Config, dense: Vector | None) -> Resharded | None:
    """Stops running shards of another number of shards and re-partitions their state, before a start."""
    files = files_of(config)
    for parts in files.counts(spec):
        if parts != spec.parts:
            stop_shards(running_shards(replace(spec, parts=parts)))
    log = open_log(config)
    try:
        return reshard_line(spec, files, delta_publisher(log, spec.line), dense)
    finally:
        log.close()


def start_shards(spec: ShardSpec, config: Config, dense: Vector | None) -> list[Any]:
    """Starts the shards of a line, or finds running ones; returns their handles by part when ready."""
    config = replace(config, state=str(Path(config.state).resolve()))  # actors run elsewhere
    handles = []
    for part in range(spec.parts):
        actor: Any = ray.remote(ShardActor)
        actor = actor.options(
            name=actor_name(spec, part),
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            max_task_retries=-1,
            max_concurrency=_CALLS,
            num_cpus=_CPUS,
            scheduling_strategy="SPREAD",  # over the nodes
        )
        own = part_of(spec, part)
        pieces = _pieces(dense) if part == 0 and dense is not None else []
        handles.append(actor.remote(own, config, *pieces))
    ray.get([handle.address.remote() for handle in handles])
    return handles


def _pieces(dense: Vector) -> list[bytes]:
    """Splits the parameters into arguments small enough to travel within the call. Ray would store a larger
    one as an object that is gone once the actor has started, so it couldn't restart the actor."""
    data = np.ascontiguousarray(dense, np.float32).tobytes()
    return [data[at : at + _PIECE] for at in range(0, len(data), _PIECE)]


def find_shards(spec: ShardSpec) -> list[Any]:
    """Handles of a line's shards by part. Raises ValueError naming one that doesn't run."""
    return [_find_shard(spec, part) for part in range(spec.parts)]


def await_shards(
    spec: ShardSpec, is_over: Callable[[], bool], pause: Callable[[], object], most_s: float = inf
) -> list[Any] | None:
    """The shards of an epoch, which may be starting; None once ``is_over``. Raises ValueError after
    ``most_s``."""
    deadline = time.monotonic() + most_s
    while not is_over():
        try:
            return find_shards(spec)
        except ValueError:  # not started yet
            if time.monotonic() > deadline:
                raise
            pause()
    return None


def running_shards(spec: ShardSpec) -> list[Any]:
    """Handles of a line's registered shards, responsive or not."""
    handles = []
    for part in range(spec.parts):
        with contextlib.suppress(ValueError):
            handles.append(_find_shard(spec, part))
    return handles


def _find_shard(spec: ShardSpec, part: int) -> Any:
    return ray.get_actor(actor_name(spec, part), NAMESPACE)


def stop_shards(handles: Sequence[Any], timeout_s: float = 10.0) -> None:
    """Stops shards for good and frees their names. Kills those that don't close their files within
    ``timeout_s`` (for all together); they recover as after any kill."""
    asked = [handle.stop.remote() for handle in handles]
    done, late = ray.wait(asked, num_returns=len(asked), timeout=timeout_s) if asked else ([], [])
    for answer in done:
        try:
            ray.get(answer)
        except ray.exceptions.RayError as error:
            _LOG.warning("a shard stopped without closing its files: %r", error)
    if late:
        _LOG.warning("killed %d shards that didn't close their files in %.0f s", len(late), timeout_s)
    for handle in handles:
        ray.kill(handle, no_restart=True)


def actor_name(spec: ShardSpec, part: int) -> str:
    return f"shard-{spec.line}-{spec.epoch}-{part}-of-{spec.parts}"


def connect(spec: ShardSpec, handles: Sequence[Any], worker: WorkerId, tls: Tls = None) -> ShardedClient:
    """Client of running shards, over their sockets."""
    channels = [
        SocketChannel(_resolver(spec, part, handle), partial(hello, spec, part, worker), tls=tls)
        for part, handle in enumerate(handles)
    ]
    return ShardedClient(spec, channels, worker)


def _resolver(spec: ShardSpec, part: int, handle: Any) -> Callable[[], Address]:
    """Function for a shard's current address; finds an actor created anew under the same name."""
    current = handle

    def resolve() -> Address:
        nonlocal current
        try:
            address: Address = ray.get(current.address.remote(), timeout=30)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
            with contextlib.suppress(ValueError):
                current = _find_shard(spec, part)
            raise ConnectionError(f"the shard is restarting: {error!r}") from None
        return address

    return resolve
