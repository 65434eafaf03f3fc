"""Shards as named Ray actors: Ray places and restarts them; rows travel over a socket of their own.

A shard is detached and comes back by itself from snapshot + write-ahead file. Its address and token are
handed out by a Ray call. The same requests also go through plain Ray calls (``call``): the fallback where a
socket can't pass, and the oracle of the transport.
"""

import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import ray
from ray.util.metrics import Gauge

from parameter_server.publish.publish_trace import tell_published
from parameter_server.rpc.parameter_client import (
    Channel,
    ShardedClient,
    ShardUnreachable,
    Worker,
    hello,
)
from parameter_server.rpc.protocol import Frame, Refusal, encode, from_bytes
from parameter_server.rpc.shard_service import ShardService
from parameter_server.rpc.transport import Address, SocketChannel, SocketServer
from parameter_server.shard.shard import ShardSpec, part_of
from parameter_server.storage.durable_shard import DurableShard, Publish, ShardStorage
from parameter_server.storage.reshard import Resharded, ShardFiles, reshard_line
from parameter_server.table.dense import Vector
from parameter_server.table.kernels import warm
from recsys.config.system_config import Config
from recsys.events.records import DELTAS
from recsys.log.protocol import Append, Log
from recsys.observability.log_lines import keep_newest, log_in_worker
from recsys.observability.tracer import Tracer, open_tracer_in_actor
from recsys.process.malloc_tuning import BESIDE_TABLES, keep_freed_memory
from recsys.process.open_log import open_log

NAMESPACE = "recsys"
_PIECE: Final = 64 << 10  # bytes; Ray takes up to 100 KB into a call
_LOGS: Final = 32  # of each part: three files of ten lines that live
_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True)
class Placement:
    """What Ray needs to know of a shard."""

    cpus: float = 0.1
    host: str = "127.0.0.1"  # what its socket binds to
    calls: int = 64  # at once: every waiting worker takes one


class ShardActor:
    """One shard behind a socket. The rest is ``DurableShard`` and ``ShardService``."""

    def __init__(self, spec: ShardSpec, config: Config, host: str, *dense: bytes) -> None:
        """``dense``: the initial parameters of part 0, in pieces."""
        self._spec = spec
        log_as(spec, config)
        warm()
        keep_freed_memory(BESIDE_TABLES)
        self._tracer = open_tracer_in_actor(config, "shards", str(spec.part))
        initial = np.frombuffer(b"".join(dense), np.float32) if dense else None
        self._shard = DurableShard(
            spec,
            home_of(spec, config),
            publisher(open_log(config), spec.line, self._tracer),
            initial,
            background=True,
        )
        self._service = ShardService(self._shard, secrets.token_hex(16))
        self._server = SocketServer(self._service, host)
        tags = ("line", "epoch", "shard")
        self._rows = Gauge("recsys_shard_rows", "Rows of a shard", tag_keys=(*tags, "table"))
        self._step = Gauge("recsys_shard_step", "The newest step of a shard", tag_keys=tags)

    def __repr__(self) -> str:
        """As Ray's dashboard and logs name it."""
        its = self._spec
        return f"Shard({its.line}/{its.epoch}, {its.part + 1} of {its.parts})"

    def address(self) -> Address:
        """AppliedQuery it listens now: another port and token after each restart."""
        return self._server.address

    def call(self, greeting: bytes, request: bytes) -> bytes:
        """A request as over the socket: greeting and request in, reply out."""
        refusal = self._service.hello(from_bytes(greeting).message)
        reply = Frame(refusal) if refusal is not None else self._service.answer(from_bytes(request))
        self._service.publish()  # before the answer here: a Ray call has nothing after it
        return b"".join(encode(reply))

    def status(self) -> dict[str, Any]:
        """Rows, bytes, applied step, what was refused and expired.

        Asked for about once a second: a delta whose publication failed goes out once the log is back, though
        no step follows.
        """
        status = self._shard.status()
        if status["unpublished"]:
            self._service.publish()
            status = self._shard.status()
        tags = {"line": self._spec.line, "epoch": str(self._spec.epoch)}
        tags |= {"shard": str(self._spec.part)}
        self._step.set(status["step"], tags)
        for table, rows in status["rows"].items():
            self._rows.set(rows, tags | {"table": table})
        traced = self._tracer
        spans = {"spans_sent": traced.sent, "spans_dropped": traced.dropped} if traced else {}
        return status | {"refused_connections": self._server.refused} | spans

    def digest(self) -> str:
        """SHA-256 of this shard's state."""
        return self._shard.digest()

    def snapshot(self) -> None:
        """Takes a snapshot now."""
        self._shard.snapshot()

    def abandon(self) -> None:
        """Frees the workers of an epoch that the line has left."""
        self._service.abandon()

    def stop(self) -> None:
        """Takes a last snapshot, where one is due, and closes everything; kill the actor after it."""
        self._server.close()
        self._shard.stop()
        if self._tracer:
            self._tracer.close()


def log_as(spec: ShardSpec, config: Config) -> None:
    """To a file of this shard's own. Those of lines and epochs that were left stay for a while."""
    keep_newest(config.state, "shard-*.log*", _LOGS * spec.parts)
    who = {"shard": spec.part, "line": spec.line, "epoch": spec.epoch}
    name = f"shard-{spec.line}-{spec.epoch}-{spec.part}"
    log_in_worker("shards", config.state, name, config.logging.format, who)


def home_of(spec: ShardSpec, config: Config) -> ShardStorage:
    """AppliedQuery a shard keeps its files, under the state folder."""
    files = files_of(config)
    return ShardStorage(
        snapshots=files.snapshots,
        wal=files.wal(spec),
        snapshot_every=config.step.snapshot_every,
        snapshots_kept=config.step.snapshots_kept,
        sync=files.sync,
    )


def files_of(config: Config) -> ShardFiles:
    """AppliedQuery all shards keep theirs."""
    state = Path(config.state).resolve()
    power = config.log.durability == "power"
    return ShardFiles(state / "snapshots", state / "parts" / "shards", power)


def prepare(spec: ShardSpec, config: Config, dense: Vector | None) -> Resharded | None:
    """Before the shards start: stops those of another number of shards that still run, and cuts what they
    left for the number that there is now."""
    files = files_of(config)
    for parts in files.counts(spec):
        if parts != spec.parts:
            stop_shards(running_shards(replace(spec, parts=parts)))
    log = open_log(config)
    try:
        return reshard_line(spec, files, publisher(log, spec.line), dense)
    finally:
        log.close()


def start_shards(
    spec: ShardSpec, config: Config, dense: Vector | None, placement: Placement | None = None
) -> list[Any]:
    """Starts the shards of a line, or finds those that run; returns their handles, by part, when ready."""
    placement = placement or Placement()
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
            max_concurrency=placement.calls,
            num_cpus=placement.cpus,
        )
        own = part_of(spec, part)
        pieces = _pieces(dense) if part == 0 and dense is not None else []
        handles.append(actor.remote(own, config, placement.host, *pieces))
    ray.get([handle.address.remote() for handle in handles])
    return handles


def _pieces(dense: Vector) -> list[bytes]:
    """The parameters as arguments that travel within the call. A larger one would be an object of its own in
    Ray, which goes when the actor has started: then Ray can't start it again."""
    data = np.ascontiguousarray(dense, np.float32).tobytes()
    return [data[at : at + _PIECE] for at in range(0, len(data), _PIECE)]


def find_shards(spec: ShardSpec) -> list[Any]:
    """The handles of a line's running shards, by part. Raises ValueError naming one that doesn't run."""
    return [ray.get_actor(actor_name(spec, part), NAMESPACE) for part in range(spec.parts)]


def running_shards(spec: ShardSpec) -> list[Any]:
    """The handles of those shards of a line that have a name now, whether they answer or not."""
    handles = []
    for part in range(spec.parts):
        with contextlib.suppress(ValueError):
            handles.append(ray.get_actor(actor_name(spec, part), NAMESPACE))
    return handles


def stop_shards(handles: Sequence[Any], timeout_s: float = 10.0) -> None:
    """Stops shards for good and frees their names; their state stays on disk.

    One that doesn't close its files within ``timeout_s`` (seconds, for all together) is killed all the same:
    it comes back from them as after any kill.
    """
    asked = [handle.stop.remote() for handle in handles]
    done, late = ray.wait(asked, num_returns=len(asked), timeout=timeout_s) if asked else ([], [])
    for answer in done:
        try:
            ray.get(answer)
        except ray.exceptions.RayError as error:
            _LOG.warning("a shard stops without having closed its files: %r", error)
    if late:
        _LOG.warning("%d shards don't close their files in %.0f s: killed", len(late), timeout_s)
    for handle in handles:
        ray.kill(handle, no_restart=True)


def actor_name(spec: ShardSpec, part: int) -> str:
    return f"shard-{spec.line}-{spec.epoch}-{part}-of-{spec.parts}"


def connect(
    spec: ShardSpec, handles: Sequence[Any], worker: Worker, transport: str = "socket"
) -> ShardedClient:
    """A worker's client of running shards, over sockets or (``ray``) plain Ray calls."""
    channels: list[Channel] = []
    for part, handle in enumerate(handles):
        if transport == "socket":
            channels.append(
                SocketChannel(_resolver(spec, part, handle), _greeter(spec, part, worker))
            )
        else:
            channels.append(RayChannel(handle, _greeter(spec, part, worker)))
    return ShardedClient(spec, channels, worker)


class RayChannel(Channel):
    """One worker's way to one shard through Ray calls."""

    def __init__(self, handle: Any, greet: Callable[[str], Any], give_up_s: float = 120.0) -> None:
        self._handle, self._greet, self._give_up_s = handle, greet, give_up_s
        self._request = b""
        self._reply: Any = None

    def send(self, frame: Frame) -> None:
        self._request = b"".join(encode(frame))
        self._reply = None

    def receive(self) -> Frame:
        deadline, pause_s = time.monotonic() + self._give_up_s, 0.05
        while True:
            try:
                reply = from_bytes(ray.get(self._start(), timeout=self._give_up_s))
                if not isinstance(reply.message, Refusal) or reply.message.kind != "failed":
                    return reply
                problem = reply.message.text
            except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
                problem = repr(error)
            self._reply = None
            if time.monotonic() > deadline:
                raise ShardUnreachable(f"no answer in {self._give_up_s:.0f} s: {problem}")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 1.0)

    def close(self) -> None:
        self._reply = None

    def _start(self) -> Any:
        if self._reply is None:
            token = ray.get(self._handle.address.remote()).token
            greeting = b"".join(encode(Frame(self._greet(token))))
            self._reply = self._handle.call.remote(greeting, self._request)
        return self._reply


def _resolver(spec: ShardSpec, part: int, handle: Any) -> Callable[[], Address]:
    """AppliedQuery a shard listens now. One that Ray gave up on has been made anew under the same name."""
    current = handle

    def resolve() -> Address:
        nonlocal current
        try:
            address: Address = ray.get(current.address.remote(), timeout=30)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
            with contextlib.suppress(ValueError):
                current = ray.get_actor(actor_name(spec, part), NAMESPACE)
            raise ConnectionError(f"the shard is restarting: {error!r}") from None
        return address

    return resolve


def _greeter(spec: ShardSpec, part: int, worker: Worker) -> Callable[[str], Any]:
    return lambda token: hello(spec, part, worker, token)


def publisher(log: Log, line: str, tracer: Tracer | None = None) -> Publish:
    """Appends deltas of a line."""
    key = line.encode()

    def publish(deltas: Sequence[bytes]) -> None:
        began_ns = time.time_ns()
        log.append(DELTAS, [Append(0, key, delta) for delta in deltas])
        if tracer:
            tell_published(tracer, deltas, began_ns, time.time_ns())

    return publish
