"""The canary's side of a replica: a second line of weights, for the share of users that it answers.

It is a replica of its own beside live's, with a reader and a thread of its own, made when ``control`` says
that a candidate answers, and dropped when it says that it doesn't any more. Until it has caught up, and
for everybody else, live answers. A request is answered by one side alone, and its stamp says by which.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from experiments.lifecycle import Standing, answers
from recsys.config import Config
from recsys.features import FeatureSet
from recsys.hashing import Id
from recsys.log import Log
from serving.follower import Follower
from serving.pipeline import Pipeline
from serving.replica import Replica
from serving.state_reader import StateReader

_PAUSE_S: Final = 5.0  # before it is tried again


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
        self._making = False
        self._again_s = 0.0

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on, sides follow the log in threads of their own."""
        self._loop = loop

    def look(self, standing: Standing | None) -> None:
        """Takes note of the candidate that answers now, if any does. Never waits, never raises."""
        side, line = self.side, None if standing is None else standing.line
        self.standing = standing
        if side is not None and (side.line != line or side.follower.failure):
            self._drop()
        if line is None or self.side is not None or self._making:
            return
        if self._loop is None:
            self._make(line)
        elif time.monotonic() >= self._again_s:
            self._making = True
            threading.Thread(target=self._make, args=(line,), name="canary", daemon=True).start()

    def pipeline(self, user_id: Id) -> Pipeline | None:
        """The canary's, where it answers this user and has caught up; None: live answers."""
        side = self.side
        if side is None or not side.reader.ready or side.follower.failure:
            return None
        if self.standing is None or side.line != self.standing.line:
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

    def _make(self, line: str) -> None:
        """In a thread of its own: a model is made, and the log is asked where it ends. What goes wrong is
        tried again after a while."""
        try:
            replica = Replica(self._features, self._config)
            reader = StateReader(self._log, replica, self._config, self._now_ms, pinned=(line, 0))
            made = Side(line, Pipeline(replica), reader, Follower(self._log, reader))
            if self._loop is not None:
                made.follower.start(self._loop)
            self.side = made
        except Exception:
            logging.getLogger(__name__).exception("the canary %s can't be made", line)
            self._again_s = time.monotonic() + _PAUSE_S
        finally:
            self._making = False

    def _drop(self) -> None:
        """Nobody is answered by it any more; its thread ends by itself."""
        side, self.side = self.side, None
        if side is not None and self._loop is not None:
            threading.Thread(target=side.follower.stop, name="canary-stop", daemon=True).start()
