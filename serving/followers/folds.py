"""Follows how far the folds of sessions and counters, on which answers depend, are behind ``events``."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from recsys.clock import is_due
from recsys.events.hashing import Id, partition_of
from recsys.events.records import EVENTS
from recsys.log.protocol import Log
from recsys.observability.catching_up import CatchingUp, catching_up
from serving.followers.follower import Follower
from serving.replica.replica import Replica

SESSIONS, COUNTERS = "sessions", "counters"
_EVERY_MS: Final = 1_000


@dataclass(frozen=True)
class FoldsChange:
    """Ends of ``events``, and where each fold is, by partition; None without news."""

    at_s: float = 0.0
    ends: Sequence[int] = ()
    places: dict[str, list[int]] | None = None

    def __bool__(self) -> bool:
        return self.places is not None


class FoldsFollower(Follower[FoldsChange]):
    """``catching_up``: folds that don't keep up, by name. ``has_caught_up``: each did at least once.
    ``sessions_at``: offsets up to which the sessions are folded, from their store; None: unknown."""

    def __init__(
        self, log: Log, replica: Replica, now_ms: Callable[[], int],
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        super().__init__()
        self._log, self._replica, self._now_ms, self._now_s = log, replica, now_ms, now_s
        self.sessions_at: Sequence[int] | None = None
        self._due_ms = 0
        self._before: FoldsChange | None = None
        self._late: set[int] = set()  # partitions whose sessions lack events
        self.catching_up: dict[str, CatchingUp] = {}
        self.has_caught_up = False

    def read(self, limit: int) -> FoldsChange:
        now_ms = self._now_ms()
        if not is_due(now_ms, self._due_ms, _EVERY_MS):
            return FoldsChange()
        self._due_ms = now_ms + _EVERY_MS
        log, count = self._log, self._log.partitions(EVENTS)
        begins = [log.begin(EVENTS, p) for p in range(count)]
        places = {COUNTERS: list(self._replica.counted) or begins}
        if self.sessions_at is not None:
            places[SESSIONS] = [max(x, begin) for x, begin in zip(self.sessions_at, begins, strict=True)]
        return FoldsChange(self._now_s(), [log.end(EVENTS, p) for p in range(count)], places)

    def apply(self, change: FoldsChange) -> None:
        before, self._before = self._before, change
        if change.places is None:
            self._before = before
            return
        self.catching_up = {}
        for name, places in change.places.items():
            behind = [max(0, end - place) for end, place in zip(change.ends, places, strict=True)]
            per_s = 0.0
            if before and before.places and name in before.places and change.at_s > before.at_s:
                moved = sum(places) - sum(before.places[name])
                per_s = max(0.0, moved / (change.at_s - before.at_s))
            state = catching_up(sum(behind), per_s)
            if state is not None:
                self.catching_up[name] = state
            if name == SESSIONS:
                self._late = {p for p, n in enumerate(behind) if n} if state else set()
        self.has_caught_up |= SESSIONS in change.places and not self.catching_up

    def lacks_events(self, user_id: Id) -> bool:
        """Whether a user's session may lack events."""
        return bool(self._late) and partition_of(user_id, len(self._replica.counted) or 1) in self._late
