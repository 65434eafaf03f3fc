"""Many simulated viewers at a bounded event rate. Pure: time is handed in.

``turn`` returns what to send now; the caller reports answers and failures. As many viewers are inside as the
rate feeds; when the server or the rate falls behind, they leave after their list instead of piling up.
"""

import heapq
import math
from dataclasses import dataclass, field
from typing import Final

from examples.short_video.viewer import Viewer
from examples.short_video.world import World
from recsys.client import Recommendations
from recsys.events.event_types import Engagement, Item
from recsys.events.hashing import uniform

_FIRST_GUESS: Final = 0.3  # events a second of one viewer, before the first lists are measured
_LATE_MS: Final = 1_500  # lag of the oldest due event at which viewers leave after their list
_FORGET: Final = 0.98  # decay of the yield estimate at each list


class Pacer:
    """Token bucket: never more than ``rate`` × seconds + ``burst`` is spent."""

    def __init__(self, rate: float, now_s: float) -> None:
        if not 0 < rate < math.inf:
            raise ValueError(f"rate is {rate}, expected a positive number of events a second")
        self._rate, self._now_s = rate, now_s
        # Largest budget of a turn: above one turn's share, or fractions of events would be lost.
        self.burst = 1.0 + rate / 10
        self._budget = 1.0

    def left(self, now_s: float) -> int:
        """Number of events that may be sent now."""
        passed = max(0.0, now_s - self._now_s)
        self._now_s = max(now_s, self._now_s)
        self._budget = min(self.burst, self._budget + passed * self._rate)
        return int(self._budget)

    def spend(self, number: int) -> None:
        """Takes sent events off the budget."""
        assert number <= self._budget, (number, self._budget)
        self._budget -= number


@dataclass
class Work:
    """Messages to send now: engagements in time order, newly published items, and viewers who want a list."""

    events: list[Engagement] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    lists: list[Viewer] = field(default_factory=list)


class Crowd:
    """Viewers of one world. Each engagement, item and list counts as one event of the rate."""

    def __init__(self, world: World, rate: float, now_ms: int, *, publish: bool = False) -> None:
        self._world = world
        self._pacer = Pacer(rate, now_ms / 1000)
        self._rate = rate
        self._inside: dict[str, Viewer] = {}
        self._watching: set[str] = set()  # viewers who haven't left yet
        self._queue: list[tuple[int, int, Viewer]] = []  # by the time of their next action
        self._numbers = 0
        self._place: dict[str, int] = {}  # number of a viewer's valid entry in the queue
        self._yield = [_FIRST_GUESS, 1.0]  # events and seconds of recent lists
        self._items = world.items(now_ms) if publish else []
        self._publish, self._published_ms = publish, now_ms
        self.late_ms = 0  # lag of the oldest due event

    @property
    def inside(self) -> int:
        """Number of viewers who are watching now."""
        return len(self._watching)

    @property
    def fits(self) -> int:
        """Number of viewers that the rate feeds."""
        events, seconds = self._yield
        return max(1, min(self._world.num_users, math.ceil(self._rate * seconds / events)))

    def turn(self, now_ms: int, max_lists: int = 1000) -> Work:
        """Due messages within the rate, oldest first; then as many newcomers as there is room for."""
        work = Work()
        left = self._pacer.left(now_ms / 1000)
        if self._publish:
            self._items += self._world.new_items(self._published_ms + 1, now_ms + 1)
            self._published_ms = now_ms
            work.items, self._items = self._items[:left], self._items[left:]
        spare = left - len(work.items)
        due_ms = self._due_ms()
        self.late_ms = max(0, now_ms - due_ms) if due_ms is not None else 0
        while spare > 0 and (due_ms := self._due_ms()) is not None and due_ms <= now_ms:
            viewer = heapq.heappop(self._queue)[2]
            due = viewer.due(now_ms, 1)
            work.events += due
            spare -= len(due)
            if not due:
                spare -= self._ask(viewer, now_ms, work, max_lists)
            self._wait(viewer)
        while spare > 0 and len(self._watching) < self.fits and len(work.lists) < max_lists:
            newcomer = self._newcomer(now_ms)
            if newcomer is None:
                break
            spare -= self._ask(newcomer, now_ms, work, max_lists)
            self._wait(newcomer)
        self._pacer.spend(left - spare)
        return work

    def answered(self, viewer: Viewer, answer: Recommendations, now_ms: int) -> None:
        """Must be called when a viewer's list arrives."""
        reactions = viewer.take(answer, now_ms)
        ends = [event.time_ms for event in reactions if event.kind == "view"]
        seconds = (max(ends) - now_ms) / 1000 if ends else 1.0
        events = len(reactions) + 1
        past_events, past_seconds = self._yield
        self._yield = [past_events * _FORGET + events, past_seconds * _FORGET + max(seconds, 0.1)]
        self._wait(viewer)

    def failed(self, viewer: Viewer, now_ms: int) -> None:
        """Must be called when a viewer's request fails."""
        viewer.failed(now_ms)
        self._wait(viewer)

    def _ask(self, viewer: Viewer, now_ms: int, work: Work, max_lists: int) -> int:
        """Lets a viewer ask for a list, wait a little, or leave; returns the events that this costs."""
        if not viewer.wants_list(now_ms):
            return 0
        if self.late_ms > _LATE_MS and viewer.shown:
            viewer.leave()
            return 0
        if len(work.lists) >= max_lists:
            viewer.failed(now_ms, again_ms=50)
            return 0
        viewer.asked()
        work.lists.append(viewer)
        return 1

    def _wait(self, viewer: Viewer) -> None:
        user_id = str(viewer.user_id)
        self._numbers += 1
        if viewer.watches:
            self._watching.add(user_id)
        else:
            self._watching.discard(user_id)
        if viewer.gone:
            self._inside.pop(user_id, None)
            self._place.pop(user_id, None)
        else:
            self._place[user_id] = self._numbers
            if not viewer.waits:
                heapq.heappush(self._queue, (viewer.next_ms, self._numbers, viewer))

    def _due_ms(self) -> int | None:
        """Time of the next due event. Entries that a later one of the same viewer replaces are dropped."""
        while self._queue:
            at_ms, number, viewer = self._queue[0]
            if self._place.get(str(viewer.user_id)) == number:
                return at_ms
            heapq.heappop(self._queue)
        return None

    def _newcomer(self, now_ms: int) -> Viewer | None:
        """A viewer who isn't inside; some people come more often. None when it is hard to find one."""
        for attempt in range(20):
            draw = uniform(self._world.seed, "visit", now_ms, len(self._inside), attempt)
            user_id = f"u{int(draw**2 * self._world.num_users)}"
            if user_id not in self._inside:
                viewer = Viewer(self._world, user_id, now_ms)
                self._inside[user_id] = viewer
                return viewer
        return None
