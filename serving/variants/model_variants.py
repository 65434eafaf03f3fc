"""The other sides of a replica: lines of weights beside the live one, each for some of the users.

A side is a replica of its own beside live's, with a reader and a thread of its own, made when it is wanted
and its line has a snapshot, and dropped when it isn't wanted any more. Until it has caught up, live answers.
A request is answered by one side alone, and its stamp says by which.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from parameter_server.storage import snapshots
from recsys.config.system_config import Config
from recsys.features.feature_set import FeatureSet
from recsys.log.protocol import Log
from serving.pipeline import Pipeline
from serving.replica.log_follower import Follower
from serving.replica.replica import Replica
from serving.replica.state_reader import StateReader

_PAUSE_S: Final = 5.0  # before one that couldn't be made, or failed, is tried again
_LOOK_S: Final = 1.0  # between two looks for a line's first snapshot


@dataclass(frozen=True)
class ModelVariant:
    """What answers for one line."""

    line: str
    pipeline: Pipeline
    reader: StateReader
    follower: Follower

    @property
    def ready(self) -> bool:
        """Whether it may answer: it has caught up, and has weights."""
        fine = self.reader.ready and not self.follower.failure
        return fine and self.pipeline.replica.step > 0


class ModelVariants:
    """Belongs to the event loop that answers. ``want`` before each request."""

    def __init__(
        self, config: Config, log: Log, features: FeatureSet, now_ms: Callable[[], int]
    ) -> None:
        self._config, self._log, self._features, self._now_ms = config, log, features, now_ms
        self._snapshots = Path(config.state) / "snapshots"
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sides: dict[str, ModelVariant] = {}  # changed by whoever calls ``want`` alone
        self._made: deque[ModelVariant] = deque()  # by threads, and not among these yet
        self._wanted: frozenset[str] = frozenset()
        self._making: set[str] = set()
        self._again_s: dict[str, float] = {}

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on, sides follow the log in threads of their own."""
        self._loop = loop

    def want(self, lines: Collection[str]) -> None:
        """Which lines are to be there. Never waits, never raises."""
        self._wanted = frozenset(lines)
        making = frozenset(self._making)  # before what was made is taken in: none is made twice
        self._take_in()
        for line, side in list(self._sides.items()):
            if side.follower.failure:
                self._again_s[line] = time.monotonic() + _PAUSE_S
            if line not in self._wanted or side.follower.failure:
                self._drop(self._sides.pop(line))
        for line in self._wanted - self._sides.keys() - making:
            if self._loop is None:
                self._make(line)
                self._take_in()
            elif time.monotonic() >= self._again_s.get(line, 0.0):
                self._making.add(line)
                threading.Thread(target=self._make, args=(line,), name="side", daemon=True).start()

    def _take_in(self) -> None:
        while self._made:
            side = self._made.popleft()
            self._sides[side.line] = side

    def get(self, line: str) -> ModelVariant | None:
        """The side of a line, whether or not it has caught up; None where there is none, or not yet."""
        return self._sides.get(line)

    def fit(self, side: ModelVariant) -> bool:
        """Whether a side may answer now: one whose line stands still while others learn may not."""
        return side.ready and not side.reader.stale(self._now_ms())

    @property
    def all(self) -> list[ModelVariant]:
        return list(self._sides.values())

    async def stop(self) -> None:
        """Ends their threads."""
        self._loop = None
        self._take_in()
        sides, self._sides = list(self._sides.values()), {}
        for side in sides:
            await asyncio.to_thread(side.follower.stop)

    def _make(self, line: str) -> None:
        """In a thread of its own: a model is made, and the log is asked where it ends. What goes wrong, or
        isn't there yet, is tried again after a while."""
        try:
            if not snapshots.complete_steps(self._snapshots, line, 0):
                self._again_s[line] = time.monotonic() + _LOOK_S
                return
            replica = Replica(self._features, self._config)
            reader = StateReader(self._log, replica, self._config, self._now_ms, pinned=(line, 0))
            made = ModelVariant(line, Pipeline(replica), reader, Follower(self._log, reader))
            if self._loop is not None:
                made.follower.start(self._loop)
            self._made.append(made)
        except Exception:
            logging.getLogger(__name__).exception("the side of %s can't be made", line)
            self._again_s[line] = time.monotonic() + _PAUSE_S
        finally:
            self._making.discard(line)

    def _drop(self, side: ModelVariant) -> None:
        """Nobody is answered by it any more; its thread ends by itself."""
        if self._loop is not None:
            threading.Thread(target=side.follower.stop, name="side-stop", daemon=True).start()
