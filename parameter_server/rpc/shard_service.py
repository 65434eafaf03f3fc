"""What a shard answers to workers: the barrier over lanes, and one reply per request, over any transport.

Several workers send their lanes of a step, each on a thread of its own; the step is learned once, when all
lanes are there, and everyone is answered. A worker that dies would make the others wait for ever, so each run
of the workers has a generation: a newer one's hello frees whoever waits in an older one, with a refusal.
"""

import hmac
import logging
import threading
from dataclasses import dataclass
from typing import Final

import numpy as np

from parameter_server.rpc.protocol import (  # fmt: skip
    Answer,
    AnyMessage,
    CommonStepQuery,
    Exchange,
    Frame,
    Hello,
    Lookup,
    Refusal,
    Rewind,
    AppliedQuery,
    ProtocolError,
    read_exchange,
)
from parameter_server.shard.lanes import LaneGradients
from parameter_server.shard.shard import StepMismatch
from parameter_server.storage.durable_shard import DurableShard
from parameter_server.table.routing import Keys

_NOBODYS: Final = 1 << 62  # a generation that no workers have
_LOG: Final = logging.getLogger(__name__)


class Stale(RuntimeError):
    """A newer generation of workers has said hello: this one must end."""


@dataclass
class Waiting:
    """The lanes of the next step that have arrived. A lane that is sent again replaces its equal."""

    lanes: int
    step: int = 0

    def __post_init__(self) -> None:
        self._there: dict[int, LaneGradients] = {}

    def add(self, step: int, lanes: list[LaneGradients]) -> list[LaneGradients] | None:
        """All lanes of the step once they are there, else None. They stay until another step begins, for the
        step may have to be learned again: a full disk, a log that is away."""
        if step != self.step:
            self._there, self.step = {}, step
        self._there |= {lane.lane: lane for lane in lanes}
        if len(self._there) < self.lanes:
            return None
        return list(self._there.values())

    def missing(self) -> list[int]:
        return sorted(set(range(self.lanes)) - self._there.keys())

    def clear(self) -> None:
        self._there = {}


class ShardService:
    """Answers requests for one shard. Any number of threads may call it."""

    def __init__(self, shard: DurableShard, token: str, patience_s: float = 600.0) -> None:
        self._shard, self._token, self._patience_s = shard, token, patience_s
        self._changed = threading.Condition()
        self._waiting = Waiting(shard.spec.lanes)
        self._generation = 0
        self._closed = False

    @property
    def token(self) -> str:
        return self._token

    def hello(self, hello: AnyMessage) -> Refusal | None:
        """Checks who connects; None where it is welcome."""
        spec = self._shard.spec
        if not isinstance(hello, Hello):
            return Refusal("hello", "the first message of a connection must be a hello")
        if not hmac.compare_digest(hello.token.encode(), self._token.encode()):
            return Refusal("hello", "the token is wrong: ask the shard's actor for its address")
        theirs = (hello.line, hello.epoch, hello.part, hello.parts, hello.lanes)
        ours = (spec.line, spec.epoch, spec.part, spec.parts, spec.lanes)
        if theirs != ours:
            return Refusal(
                "hello", f"(line, epoch, part, parts, lanes) is {theirs}, this shard has {ours}"
            )
        with self._changed:
            if hello.generation > self._generation:
                self._generation = hello.generation
                self._waiting.clear()
                self._changed.notify_all()
        return self._stale(hello.generation)

    def abandon(self) -> None:
        """The line has left this epoch: whoever waits here, or comes, is refused as stale."""
        with self._changed:
            self._generation = _NOBODYS
            self._waiting.clear()
            self._changed.notify_all()

    def answer(self, frame: Frame) -> Frame:
        """One reply to one request; whatever goes wrong is a Refusal."""
        try:
            return self._answer(frame)
        except StepMismatch as error:
            return Frame(Refusal("mismatch", str(error), error.asked, error.applied))
        except Stale as error:
            return Frame(Refusal("stale", str(error)))
        except (ValueError, KeyError) as error:
            return Frame(Refusal("invalid", str(error)))
        except Exception as error:  # a disk or a log that is away: the worker tries again
            return Frame(Refusal("failed", repr(error)))

    def publish(self) -> None:
        """Publishes what was learned: call it when an answer is on its way, as no worker need wait for that.
        What fails is tried again with the next answer, and before the next step is written down."""
        try:
            self._shard.flush()
        except Exception as error:
            step = self._shard.applied
            _LOG.warning("the delta of step %d waits: %r", step, error, extra={"step": step})

    def close(self) -> None:
        """Frees whoever waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _answer(self, frame: Frame) -> Frame:
        message = frame.message
        if isinstance(message, AppliedQuery):
            return Frame(Answer(self._shard.applied))
        if isinstance(message, CommonStepQuery):
            return Frame(Answer(self._shard.common_step()))
        if isinstance(message, Rewind):
            return self._rewind(message)
        if isinstance(message, Lookup):
            if len(message.tables) != len(frame.arrays):
                raise ProtocolError(f"{len(frame.arrays)} arrays for tables {message.tables}")
            if any(a.dtype != np.int64 or a.ndim != 1 for a in frame.arrays):
                raise ProtocolError("keys of a lookup are not int64 (N,)")
            return self._rows(message.step, dict(zip(message.tables, frame.arrays, strict=True)))
        if isinstance(message, Exchange):
            lanes, keys = read_exchange(frame)
            self._learn(message, lanes)
            return self._rows(message.step, keys or {})
        raise ProtocolError(f"a {type(message).__name__} is no request")

    def _learn(self, message: Exchange, lanes: list[LaneGradients]) -> None:
        """Learns the step once all its lanes are there; returns when it has been learned."""
        step = message.step
        with self._changed:
            self._check(message.generation)
            everything: list[LaneGradients] | None = lanes
            if step == self._shard.applied + 1:
                everything = self._waiting.add(step, lanes)
                if everything is None:
                    self._wait(message)
                    return
            # Else a repeat, which still may have to be published, or a hole, which is refused.
            try:
                self._shard.learn(step, message.time_ms, everything, publish=False)
            finally:
                # Also where a snapshot failed: the step may have been applied, and others wait for it.
                self._changed.notify_all()

    def _wait(self, message: Exchange) -> None:
        def done() -> bool:
            ahead = self._shard.applied >= message.step
            return ahead or self._closed or message.generation < self._generation

        if not self._changed.wait_for(done, self._patience_s):
            missing = self._waiting.missing()
            raise TimeoutError(f"lanes {missing} of step {message.step} haven't come")
        if self._shard.applied >= message.step:
            return
        self._check(message.generation)

    def _check(self, generation: int) -> None:
        if self._closed:
            raise ConnectionError("this shard is stopping")
        if generation < self._generation:
            raise Stale(
                f"generation {generation} of the workers was followed by {self._generation}"
            )

    def _stale(self, generation: int) -> Refusal | None:
        if generation >= self._generation:
            return None
        text = f"generation {generation} of the workers was followed by {self._generation}"
        return Refusal("stale", text)

    def _rewind(self, message: Rewind) -> Frame:
        with self._changed:
            self._check(message.generation)
            self._waiting.clear()
            self._shard.rewind(message.step)
            self._changed.notify_all()
        return Frame(Answer(self._shard.applied))

    def _rows(self, step: int, keys: dict[str, Keys]) -> Frame:
        rows, dense = self._shard.lookup(step, keys)
        arrays = [*rows.values(), *(() if dense is None else (dense,))]
        return Frame(Answer(step, list(rows), dense is not None), arrays)
