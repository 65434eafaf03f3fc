"""Request service of a shard: a barrier over lanes, and one reply per request.

A step is learned once all lanes, from several workers and threads, have arrived. Since a dead worker would
block the others, each run of the workers has a generation: a newer one's hello releases threads of older ones
with a refusal.
"""

import hmac
import logging
import threading
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from parameter_server.rpc.protocol import (
    AnyMessage,
    AppliedQuery,
    CommonStepQuery,
    Exchange,
    Frame,
    Hello,
    LookupQuery,
    ProtocolError,
    Refusal,
    Reply,
    Rewind,
    read_exchange,
)
from parameter_server.shard.lanes import LaneGradients
from parameter_server.shard.shard import StepMismatch
from parameter_server.storage.durable_shard import DurableShard
from parameter_server.table.routing import Keys

_ABANDONED: Final = 1 << 62  # a generation that no workers have
_LOG: Final = logging.getLogger(__name__)


class StaleGeneration(RuntimeError):
    """A newer generation of workers has said hello: this one must end."""


@dataclass
class LaneBarrier:
    """Arrived lanes of the next step. A lane sent again replaces its equal."""

    lanes: int
    step: int = 0
    _arrived: dict[int, LaneGradients] = field(default_factory=dict)

    def add(self, step: int, lanes: list[LaneGradients]) -> list[LaneGradients] | None:
        """All lanes of the step once complete, else None. They stay until another step begins, since the step
        may have to be learned again (full disk, unreachable log)."""
        if step != self.step:
            self._arrived, self.step = {}, step
        self._arrived |= {lane.lane: lane for lane in lanes}
        return list(self._arrived.values()) if len(self._arrived) == self.lanes else None

    def missing(self) -> list[int]:
        return sorted(set(range(self.lanes)) - self._arrived.keys())

    def clear(self) -> None:
        self._arrived = {}


class ShardService:
    """Answers requests for one shard. Thread-safe."""

    def __init__(self, shard: DurableShard, token: str, patience_s: float = 600.0) -> None:
        self._shard, self.token, self._patience_s = shard, token, patience_s
        self._changed = threading.Condition()
        self._barrier = LaneBarrier(shard.spec.lanes)
        self._generation = 0
        self._closed = False

    def hello(self, hello: AnyMessage) -> Refusal | None:
        """Checks a greeting; None if accepted."""
        spec = self._shard.spec
        if not isinstance(hello, Hello):
            return Refusal("hello", "the first message of a connection must be a hello")
        if not hmac.compare_digest(hello.token.encode(), self.token.encode()):
            return Refusal("hello", "the token is wrong: ask the shard's actor for its address")
        asked = (hello.line, hello.epoch, hello.part, hello.parts, hello.lanes)
        own = (spec.line, spec.epoch, spec.part, spec.parts, spec.lanes)
        if asked != own:
            fields = "(line, epoch, part, parts, lanes)"
            return Refusal("hello", f"{fields} is {asked}, this shard has {own}")
        with self._changed:
            if hello.generation > self._generation:
                self._begin_generation(hello.generation)
        try:
            self._check(hello.generation, closed=False)
        except StaleGeneration as error:
            return Refusal("stale", str(error))
        return None

    def abandon(self) -> None:
        """Refuses all workers as stale, since the line has left this epoch."""
        with self._changed:
            self._begin_generation(_ABANDONED)

    def _begin_generation(self, generation: int) -> None:
        self._generation = generation
        self._barrier.clear()
        self._changed.notify_all()

    def answer(self, frame: Frame) -> Frame:
        """Reply to one request; errors become a Refusal."""
        try:
            return self._answer(frame)
        except StepMismatch as error:
            return Frame(Refusal("mismatch", str(error), error.asked, error.applied))
        except StaleGeneration as error:
            return Frame(Refusal("stale", str(error)))
        except (ValueError, KeyError) as error:
            return Frame(Refusal("invalid", str(error)))
        except Exception as error:  # disk or log unavailable: the worker retries
            return Frame(Refusal("failed", repr(error)))

    def publish(self) -> None:
        """Publishes learned steps; call it after the answer, since no worker needs to wait for it. A failure
        is retried with the next answer and before the next step is logged."""
        try:
            self._shard.flush()
        except Exception as error:
            step = self._shard.applied
            _LOG.warning("the delta of step %d waits: %r", step, error, extra={"step": step})

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _answer(self, frame: Frame) -> Frame:
        message = frame.message
        if isinstance(message, AppliedQuery):
            return Frame(Reply(self._shard.applied))
        if isinstance(message, CommonStepQuery):
            return Frame(Reply(self._shard.common_step()))
        if isinstance(message, Rewind):
            return self._rewind(message)
        if isinstance(message, LookupQuery):
            if len(message.tables) != len(frame.arrays):
                raise ProtocolError(f"{len(frame.arrays)} arrays for tables {message.tables}")
            if any(a.dtype != np.int64 or a.ndim != 1 for a in frame.arrays):
                raise ProtocolError("keys of a lookup are not int64 (N,)")
            return self._rows(message.step, dict(zip(message.tables, frame.arrays, strict=True)))
        if isinstance(message, Exchange):
            lanes, keys = read_exchange(frame)
            self._learn(message, lanes)
            return self._rows(message.step, keys or {})
        raise ProtocolError(f"{type(message).__name__} isn't a request")

    def _learn(self, message: Exchange, lanes: list[LaneGradients]) -> None:
        """Learns the step once all its lanes have arrived; returns when it is learned."""
        step = message.step
        with self._changed:
            self._check(message.generation)
            if step == self._shard.applied + 1:
                arrived = self._barrier.add(step, lanes)
                if arrived is None:
                    self._wait(message)
                    return
                lanes = arrived
            # Else a repeat, which may still have to be published, or a gap, which is refused.
            try:
                self._shard.learn(step, message.time_ms, lanes, publish=False)
            finally:
                # Also after a failed snapshot: the step may be applied, and others wait for it.
                self._changed.notify_all()

    def _wait(self, message: Exchange) -> None:
        def done() -> bool:
            ahead = self._shard.applied >= message.step
            return ahead or self._closed or message.generation < self._generation

        if not self._changed.wait_for(done, self._patience_s):
            missing = self._barrier.missing()
            raise TimeoutError(f"lanes {missing} of step {message.step} haven't arrived")
        if self._shard.applied >= message.step:
            return
        self._check(message.generation)

    def _check(self, generation: int, closed: bool = True) -> None:
        if closed and self._closed:
            raise ConnectionError("this shard is stopping")
        if generation < self._generation:
            text = f"generation {generation} of the workers was followed by {self._generation}"
            raise StaleGeneration(text)

    def _rewind(self, message: Rewind) -> Frame:
        with self._changed:
            self._check(message.generation)
            self._barrier.clear()
            self._shard.rewind(message.step)
            self._changed.notify_all()
        return Frame(Reply(self._shard.applied))

    def _rows(self, step: int, keys: dict[str, Keys]) -> Frame:
        rows, dense = self._shard.lookup(step, keys)
        arrays = [*rows.values(), *(() if dense is None else (dense,))]
        return Frame(Reply(step, list(rows), dense is not None), arrays)
