"""A simulated viewer: asks for a list, watches it as the world decides, and reports events in time order.

A viewer has no clock and does no I/O: ``wants_list`` and ``due`` return what it wants to send by now.
"""

import heapq
from typing import Final

from examples.short_video.world import World
from recsys.client import Recommendations
from recsys.events.event_types import Engagement
from recsys.events.hashing import Id, uniform

_PAUSE_MS: Final = 400  # between the end of a list and the next request
_STAYS: Final = 0.75  # probability of another list: four lists in a visit
_NEVER: Final = 2**62


class Viewer:
    """One visit of one user: a few lists, each watched until the user has had enough."""

    def __init__(self, world: World, user_id: Id, now_ms: int, *, n: int = 8):
        self.world, self.user_id, self.n = world, user_id, n
        self.shown = self.liked = 0  # views and long views so far
        self._next_list_ms = now_ms
        self._waiting = False  # for an answer
        self._views_left = 0
        self._events: list[tuple[int, int, Engagement]] = []

    @property
    def next_ms(self) -> int:
        """Time of its next action; far away while it waits for a list."""
        soonest = self._events[0][0] if self._events else _NEVER
        return soonest if self._waiting else min(soonest, self._next_list_ms)

    @property
    def waits(self) -> bool:
        """Whether it waits for an answer and has nothing to report meanwhile."""
        return self.next_ms >= _NEVER

    @property
    def watches(self) -> bool:
        """Whether it is still watching; a viewer who left may still report something, such as a share a
        minute later."""
        return self._waiting or self._views_left > 0 or self._next_list_ms < _NEVER

    @property
    def gone(self) -> bool:
        """Whether nothing more will come."""
        return not self._events and not self._waiting and self._next_list_ms >= _NEVER

    def wants_list(self, now_ms: int) -> bool:
        """Whether it wants a list now. Call ``asked`` once the request is sent."""
        return not self._waiting and self._next_list_ms <= now_ms

    def asked(self) -> None:
        """Must be called when a request is sent in its name."""
        self._waiting = True

    def take(self, answer: Recommendations, now_ms: int) -> list[Engagement]:
        """Takes a list; returns the engagements that will follow. An empty list ends the visit."""
        request_id, ids = answer.request_id, [item.item_id for item in answer.items]
        for item in answer.items:
            self.world.know(item.item_id, item.fields)
        self._waiting = False
        events = self.world.react(self.user_id, ids, request_id, now_ms)
        for number, event in enumerate(events):
            heapq.heappush(self._events, (event.time_ms, number, event))
        ends = [event.time_ms for event in events if event.kind == "view"]
        self._views_left += len(ends)
        stays = ids and uniform(self.world.seed, request_id, "another") < _STAYS
        self._next_list_ms = max(ends) + _PAUSE_MS if ends and stays else _NEVER
        return events

    def leave(self) -> None:
        """Asks for no further list. Pending events are still reported."""
        self._next_list_ms = _NEVER

    def failed(self, now_ms: int, again_ms: int = 2_000) -> None:
        """The request failed: it asks again a little later."""
        self._waiting, self._next_list_ms = False, now_ms + again_ms

    def due(self, now_ms: int, limit: int = 1000) -> list[Engagement]:
        """Events that have happened by now and weren't returned yet, in time order, at most ``limit``."""
        due: list[Engagement] = []
        while self._events and self._events[0][0] <= now_ms and len(due) < limit:
            event = heapq.heappop(self._events)[2]
            self.shown += event.kind == "view"
            self._views_left -= event.kind == "view"
            self.liked += event.kind == "long_view"
            due.append(event)
        return due
