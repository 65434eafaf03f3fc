"""Parameter client of a worker: applied steps, lookup, exchange.

``exchange`` sends one message per shard and step: a step's gradients out, the next step's rows back. Clients
over sockets and of shards in this process give the same bits.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NoReturn, Protocol

import numpy as np

from parameter_server.rpc.protocol import (
    AppliedQuery,
    Array,
    CommonStepQuery,
    Frame,
    Hello,
    LookupQuery,
    Refusal,
    Reply,
    Rewind,
    exchange_frame,
)
from parameter_server.shard.lanes import LaneGradients
from parameter_server.shard.shard import Shard, ShardSpec, StepMismatch, part_of
from parameter_server.table.dense import Vector
from parameter_server.table.routing import Keys, Rows, Split, as_keys, split
from recsys.events.records import Delta

KeysByTable = Mapping[str, Keys]
NextKeys = KeysByTable | None
RowsByTable = dict[str, Rows]
Lanes = Sequence[LaneGradients]
Work = Callable[[], None]
MAX_HELLO_REFUSALS: Final = 8


def idle() -> None:
    """Does nothing while a client waits."""


class ShardUnreachable(ConnectionError):
    """A shard didn't answer in time."""


class StaleWorker(RuntimeError):
    """A newer generation of workers has taken over: this one must end."""


class ParameterClient(Protocol):
    """Interface of a worker to the shards of one line and epoch."""

    def applied_steps(self) -> list[int]:
        """Applied step of each shard: equal, or one apart while a step is being finished."""

    def lookup(self, step: int, keys: KeysByTable) -> RowsByTable:
        """Rows after ``step``, in the order of the keys (which may repeat). Raises StepMismatch."""

    def dense(self, step: int) -> Vector:
        """Flat dense parameters after ``step`` (empty if the line has none). Raises StepMismatch."""

    def exchange(
        self, step: int, time_ms: int, lanes: Lanes, next_keys: NextKeys, meanwhile: Work = idle
    ) -> tuple[RowsByTable | None, Vector]:
        """Sends this worker's lanes of ``step``; once all workers' lanes are applied, returns the rows of
        ``next_keys`` and the dense parameters after it. Idempotent. Calls ``meanwhile`` while waiting."""

    def align(self) -> int:
        """Step from which all shards can continue; rewinds shards to a common snapshot if one lost steps.
        Call it from one worker, at the start and after a StepMismatch, then compute the next step."""

    def close(self) -> None: ...


class LocalClient:
    """Client of shards in this process and thread: for replay, tests, and as oracle of the other clients."""

    def __init__(self, shards: Sequence[Shard], publish: Callable[[Delta], None] | None = None):
        """``shards`` by part; ``publish`` gets the delta of each shard and step."""
        self._shards, self._publish = list(shards), publish

    @staticmethod
    def fresh(
        spec: ShardSpec, dense: Vector | None, publish: Callable[[Delta], None] | None = None
    ) -> "LocalClient":
        return LocalClient(fresh_shards(spec, dense), publish)

    @property
    def shards(self) -> list[Shard]:
        return self._shards

    def applied_steps(self) -> list[int]:
        return [shard.applied for shard in self._shards]

    def lookup(self, step: int, keys: KeysByTable) -> RowsByTable:
        routed = Routed(keys, len(self._shards))
        return routed.merge([s.lookup(step, routed.of(s.spec.part)) for s in self._shards])

    def dense(self, step: int) -> Vector:
        dense = self._shards[0].dense_after(step)
        return np.empty(0, np.float32) if dense is None else dense

    def exchange(
        self, step: int, time_ms: int, lanes: Lanes, next_keys: NextKeys, meanwhile: Work = idle
    ) -> tuple[RowsByTable | None, Vector]:
        """Takes all lanes at once and never waits."""
        for shard, own in zip(self._shards, route_lanes(lanes, len(self._shards)), strict=True):
            delta = shard.learn(step, time_ms, own)
            if delta is not None and self._publish is not None:
                self._publish(delta)
        return None if next_keys is None else self.lookup(step, next_keys), self.dense(step)

    def align(self) -> int:
        return min(self.applied_steps())

    def close(self) -> None: ...


class Channel(ABC):
    """Connection to one shard: a request, then its reply. Retries while the shard is unreachable."""

    _give_up_s: float
    _sleep: Callable[[float], None] = staticmethod(time.sleep)

    @abstractmethod
    def send(self, frame: Frame) -> None:
        """Starts a request; never raises for an unreachable shard."""

    def receive(self) -> Frame:
        """Reply to the request. Raises ShardUnreachable."""
        deadline, pause_s, hello_refusals = time.monotonic() + self._give_up_s, 0.02, 0
        while True:
            reply = self._attempt()
            if isinstance(reply, Frame):
                if not isinstance(reply.message, Refusal):
                    return reply
                # A restarted shard has a new token, and its port may be another's now: resolve again.
                hello_refusals += reply.message.kind == "hello"
                retry = reply.message.kind in ("failed", "hello")
                if not retry or hello_refusals > MAX_HELLO_REFUSALS:
                    return reply
                reply = reply.message.text
            self.close()
            if time.monotonic() > deadline:
                raise ShardUnreachable(f"no answer in {self._give_up_s:.0f} s: {reply}")
            self._sleep(pause_s)
            pause_s = min(2 * pause_s, 1.0)

    @abstractmethod
    def _attempt(self) -> Frame | str:
        """Sends the request if needed and waits for its reply; the error as text if the shard is
        unreachable."""

    @abstractmethod
    def close(self) -> None: ...


@dataclass(frozen=True)
class WorkerId:
    """Identity of a worker. ``generation`` grows with each (re)start of the worker group."""

    worker: int = 0
    workers: int = 1
    generation: int = 1


class ShardedClient:
    """Client over one channel per shard. Not thread-safe."""

    def __init__(self, spec: ShardSpec, channels: Sequence[Channel], worker: WorkerId) -> None:
        """``spec``: of any part of the line."""
        if len(channels) != spec.parts:
            raise ValueError(f"there are {len(channels)} channels, expected {spec.parts}")
        self._channels, self._worker = list(channels), worker

    def applied_steps(self) -> list[int]:
        return self._applied(Frame(AppliedQuery()))

    def lookup(self, step: int, keys: KeysByTable) -> RowsByTable:
        return self._lookup(step, keys)[0]

    def dense(self, step: int) -> Vector:
        return self._lookup(step, {})[1]

    def exchange(
        self, step: int, time_ms: int, lanes: Lanes, next_keys: NextKeys, meanwhile: Work = idle
    ) -> tuple[RowsByTable | None, Vector]:
        routed = Routed(next_keys or {}, self._shards)
        generation = self._worker.generation
        frames = [
            exchange_frame(generation, step, time_ms, own, routed.of(part))
            for part, own in enumerate(route_lanes(lanes, self._shards))
        ]
        rows, dense = self._rows(frames, routed, meanwhile)
        return None if next_keys is None else rows, dense

    def align(self) -> int:
        steps = self.applied_steps()
        if max(steps) - min(steps) > 1:
            common = min(self._applied(Frame(CommonStepQuery())))
            steps = self._applied(Frame(Rewind(self._worker.generation, common)))
        return min(steps)

    def close(self) -> None:
        for channel in self._channels:
            channel.close()

    @property
    def _shards(self) -> int:
        return len(self._channels)

    def _lookup(self, step: int, keys: KeysByTable) -> tuple[RowsByTable, Vector]:
        routed = Routed(keys, self._shards)
        frames = []
        for part in range(self._shards):
            own = routed.of(part)
            frames.append(Frame(LookupQuery(step, list(own)), list(own.values())))
        return self._rows(frames, routed)

    def _ask(self, frames: Sequence[Frame], meanwhile: Work = idle) -> list[tuple[Reply, Sequence[Array]]]:
        """Sends to all shards before reading, so that they work in parallel; reads all replies before
        raising, so that none stays in transit."""
        try:
            for channel, frame in zip(self._channels, frames, strict=True):
                channel.send(frame)
            meanwhile()
            replies = [channel.receive() for channel in self._channels]
        except BaseException:
            self.close()  # else a late reply would be taken for the next one
            raise
        answers = []
        for part, (message, arrays) in enumerate(replies):
            if isinstance(message, Refusal):
                raise_refusal(part, message)
            assert isinstance(message, Reply), f"shard {part} replied {message}"
            answers.append((message, arrays))
        return answers

    def _applied(self, question: Frame) -> list[int]:
        return [answer.applied for answer, _ in self._ask([question] * len(self._channels))]

    def _rows(
        self, frames: Sequence[Frame], routed: "Routed", meanwhile: Work = idle
    ) -> tuple[RowsByTable, Vector]:
        dense = np.empty(0, np.float32)
        rows = []
        for answer, arrays in self._ask(frames, meanwhile):
            rows.append(dict(zip(answer.tables, arrays, strict=False)))
            if answer.dense:
                dense = arrays[-1]
        return routed.merge(rows), dense


class Routed:
    """Keys by table, split by shard; merges the shards' rows."""

    def __init__(self, keys: KeysByTable, shards: int) -> None:
        self._keys = {name: as_keys(ids) for name, ids in keys.items()}
        self._splits: dict[str, Split] = {}
        if shards > 1:
            self._splits = {name: split(ids, shards) for name, ids in self._keys.items()}

    def of(self, part: int) -> dict[str, Keys]:
        if not self._splits:
            return self._keys
        return {name: self._keys[name][by.of(part)] for name, by in self._splits.items()}

    def merge(self, replies: Sequence[RowsByTable]) -> RowsByTable:
        if not self._splits:
            return replies[0] if self._keys else {}
        return {
            name: by.merge([reply[name] for reply in replies], replies[0][name].shape[1])
            for name, by in self._splits.items()
        }


def route_lanes(lanes: Sequence[LaneGradients], shards: int) -> list[list[LaneGradients]]:
    """Lanes by shard: each shard's keys; dense gradients and metrics for shard 0 only."""
    routed: list[list[LaneGradients]] = [[] for _ in range(shards)]
    for lane in lanes:
        splits = {name: split(rows.keys, shards) for name, rows in lane.tables.items()}
        forget = Routed(lane.forget, shards)
        for part in range(shards):
            tables = {}
            for name, by in splits.items():
                rows, own = lane.tables[name], by.of(part)
                if len(own) == len(rows.keys):
                    tables[name] = rows
                elif len(own):
                    tables[name] = rows.take(own)
            dense, metrics = (lane.dense, lane.metrics) if part == 0 else (None, {})
            routed[part].append(
                replace(lane, tables=tables, dense=dense, metrics=metrics, forget=forget.of(part))
            )
    return routed


def fresh_shards(spec: ShardSpec, dense: Vector | None) -> list[Shard]:
    return [Shard(part_of(spec, p), dense if p == 0 else None) for p in range(spec.parts)]


def hello(spec: ShardSpec, part: int, worker: WorkerId, token: str) -> Hello:
    """Greeting of a worker to one shard."""
    shard = (spec.line, spec.epoch, part, spec.parts, spec.lanes)
    return Hello(token, *shard, worker.worker, worker.workers, worker.generation)


def raise_refusal(part: int, refusal: Refusal) -> NoReturn:
    """Raises the error that a refusal stands for."""
    if refusal.kind == "mismatch":
        raise StepMismatch(part, refusal.asked, refusal.applied)
    if refusal.kind == "stale":
        raise StaleWorker(f"shard {part}: {refusal.text}")
    if refusal.kind == "failed":
        raise ShardUnreachable(f"shard {part}: {refusal.text}")
    raise ValueError(f"shard {part} refused: {refusal.text}")
