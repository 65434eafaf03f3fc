"""Visits of simulated viewers to an API, in simulated time."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from examples.short_video.viewer import Viewer
from examples.short_video.world import World
from recsys.client import Recommendations
from recsys.events.event_types import Engagement
from recsys.events.hashing import Id


class Api(Protocol):
    """The calls that a viewer makes to a server: ``recsys.client.Client`` implements them."""

    def recommend(self, user_id: Id, n: int) -> Recommendations: ...

    def send_events(self, events: Sequence[Engagement]) -> Any: ...


@dataclass
class Tally:
    """Counts of a run."""

    lists: int = 0
    events: int = 0
    shown: int = 0
    liked: int = 0


def browse(viewer: Viewer, api: Api, now_ms: int) -> Tally:
    """Runs one visit to its end in simulated time."""
    tally = Tally()
    while not viewer.gone:
        now_ms = max(now_ms, viewer.next_ms)
        _turn(viewer, api, now_ms, tally)
    return tally


def run(world: World, api: Api, from_ms: int, until_ms: int, *, n: int = 8) -> Tally:
    """Runs all visits that begin in [from_ms, until_ms), interleaved in simulated time, each to its end."""
    tally = Tally()
    arrivals = (
        (request.time_ms, number, Viewer(world, request.user_id, request.time_ms, n=n))
        for number, request in enumerate(world.next_requests(from_ms, until_ms))
    )
    inside: list[tuple[int, int, Viewer]] = []
    following = next(arrivals, None)
    while inside or following:
        if following and (not inside or following[0] <= inside[0][0]):
            heapq.heappush(inside, following)
            following = next(arrivals, None)
        now_ms, number, viewer = heapq.heappop(inside)
        _turn(viewer, api, now_ms, tally)
        if not viewer.gone:
            heapq.heappush(inside, (viewer.next_ms, number, viewer))
    return tally


def _turn(viewer: Viewer, api: Api, now_ms: int, tally: Tally) -> None:
    due = viewer.due(now_ms)
    if due:
        api.send_events(due)
    tally.events += len(due)
    tally.shown += sum(event.kind == "view" for event in due)
    tally.liked += sum(event.kind == "long_view" for event in due)
    if viewer.wants_list(now_ms):
        viewer.asked()
        viewer.take(api.recommend(viewer.user_id, viewer.n), now_ms)
        tally.lists += 1
