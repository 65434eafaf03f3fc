"""Warm-up events of the end of a data set.

A live feed differs from a log of the past in two ways, which are evened out here. Its clients report views,
so an impression alone shows nothing; and its requests carry no context of their own, so a data set's main
context value becomes the feed's surface, and the other values become surfaces beside it.
"""

import heapq
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import msgspec

from examples.short_video.warmup import WarmupData
from recsys.events.event_types import Engagement, Event, Impression
from recsys.events.field_schema import CATEGORICAL
from recsys.features.feature_set_file import FEED_SCHEMA
from replay.datasets.dataset import Dataset

SURFACE: Final = "feed"
_FAR: Final = 2**62


def warmup_from_dataset(dataset: Dataset, limit: int = 0) -> WarmupData:
    """The last ``limit`` impressions of a data set (0: all), with their engagements."""
    scan = _Scan(dataset, limit)
    views = dataset.schema.shown_by == "impression" and not scan.has_views
    window_ms = round(dataset.window_s * 1000)

    def events() -> Iterator[Event]:
        events_on_surface = (_on_surface(e, scan.field, scan.main) for e in dataset.events(scan.from_ms))
        return with_views(events_on_surface, window_ms) if views else events_on_surface

    return WarmupData(
        dataset.name,
        replace(dataset.schema, context=FEED_SCHEMA.context, shown_by="view"),
        max(scan.last_ms, scan.shown_ms + window_ms if views else 0),
        scan.impressions,
        events,
    )


class _Scan:
    """One pass over a data set: begin of its last impressions, and its commonest context value."""

    def __init__(self, dataset: Dataset, limit: int) -> None:
        names = dataset.schema.names("context", CATEGORICAL)
        self.field = names[0] if names else ""
        times: deque[int] = deque(maxlen=limit or None)
        values: Counter[str] = Counter()
        self.last_ms, self.has_views = 0, False
        for event in dataset.events():
            self.last_ms = max(self.last_ms, event.time_ms)
            if isinstance(event, Impression):
                times.append(event.time_ms)
                values[str(event.context.get(self.field, ""))] += 1
            elif isinstance(event, Engagement) and event.kind == "view":
                self.has_views = True
        if not times:
            raise ValueError(f"data set {dataset.name!r} has no impressions, expected at least one")
        self.from_ms, self.shown_ms, self.impressions = times[0], times[-1], len(times)
        self.main = values.most_common(1)[0][0]


def _on_surface(event: Event, field: str, main: str) -> Event:
    if not isinstance(event, Impression):
        return event
    value = str(event.context.get(field, ""))
    surface = SURFACE if value == main else f"{field}-{value}"
    return msgspec.structs.replace(event, surface=surface, context={})


def with_views(events: Iterator[Event], window_ms: int) -> Iterator[Event]:
    """Adds a view of each shown item at the end of its window: for a log whose items were all shown and that
    has no views. Keeps time order."""
    waiting: list[tuple[int, int, Impression]] = []
    numbers = 0
    for event in events:
        yield from _views_until(waiting, event.time_ms)
        yield event
        if isinstance(event, Impression):
            numbers += 1
            heapq.heappush(waiting, (event.time_ms + window_ms, numbers, event))
    yield from _views_until(waiting, _FAR)


def _views_until(waiting: list[tuple[int, int, Impression]], now_ms: int) -> Iterator[Event]:
    while waiting and waiting[0][0] <= now_ms:
        at_ms, _, shown = heapq.heappop(waiting)
        for item in shown.items:
            yield Engagement(
                time_ms=at_ms,
                request_id=shown.request_id,
                user_id=shown.user_id,
                item_id=item.item_id,
                kind="view",
                surface=shown.surface,
            )
