"""The canary's side of a replica: a second line of weights, for the share of users that it answers.

It is a replica of its own beside live's, with a reader and a thread of its own, made when ``control`` says
that a candidate answers, and dropped when it says that it doesn't any more. Until it has caught up, and
for everybody else, live answers. A request is answered by one side alone, and its stamp says by which.
"""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass

from experiments.lifecycle import Standing, answers
from recsys.config import Config
from recsys.features import FeatureSet
from recsys.hashing import Id
from recsys.log import Log
from serving.follower import Follower
from serving.pipeline import Pipeline
from serving.replica import Replica
from serving.state_reader import StateReader


@dataclass(frozen=True)
class Side:
    """What answers for one candidate."""

    line: str
    pipeline: Pipeline
    reader: StateReader
    follower: Follower


class CanarySide:
    """Belongs to the event loop that answers. ``look`` before each request."""

    def __init__(
        self, config: Config, log: Log, features: FeatureSet, now_ms: Callable[[], int]
    ) -> None:
        self._config, self._log, self._features, self._now_ms = config, log, features, now_ms
        self._loop: asyncio.AbstractEventLoop | None = None
        self.standing: Standing | None = None
        self.side: Side | None = None
        self.answered = 0

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on, sides follow the log in threads of their own."""
        self._loop = loop

    def look(self, standing: Standing | None) -> None:
        """Takes note of the candidate that answers now, if any does."""
        if standing is self.standing:
            return
        self.standing = standing
        if self.side is not None and (standing is None or standing.line != self.side.line):
            self._drop()
        if standing is not None and self.side is None:
            self.side = self._made(standing.line)
            if self._loop is not None:
                self.side.follower.start(self._loop)

    def pipeline(self, user_id: Id) -> Pipeline | None:
        """The canary's, where it answers this user and has caught up; None: live answers."""
        side = self.side
        if side is None or not side.reader.ready or side.follower.failure:
            return None
        if not answers(self.standing, user_id):
            return None
        self.answered += 1
        return side.pipeline

    async def stop(self) -> None:
        """Ends its thread."""
        self._loop, side = None, self.side
        if side is not None:
            await asyncio.to_thread(side.follower.stop)

    def _made(self, line: str) -> Side:
        replica = Replica(self._features, self._config)
        reader = StateReader(self._log, replica, self._config, self._now_ms, pinned=(line, 0))
        return Side(line, Pipeline(replica), reader, Follower(self._log, reader))

    def _drop(self) -> None:
        """Nobody is answered by it any more; its thread ends by itself."""
        side, self.side = self.side, None
        if side is not None and self._loop is not None:
            threading.Thread(target=side.follower.stop, name="canary-stop", daemon=True).start()
