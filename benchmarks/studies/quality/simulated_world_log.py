"""A log of the simulated world as a data set: randomly drawn lists, answered by people whose tastes drift.

The lists don't depend on a model, so every sync interval is judged on the same rows. Three in four shown
items were published within the last day, as in a feed of short videos; the others may be of any age. Items
that the viewer didn't reach are left out of the list: they have no outcome to judge by.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from examples.short_video.world import World
from recsys.events.event_types import Event, Impression, Item, ServedItem
from recsys.events.field_schema import Schema
from recsys.events.hashing import uniform
from recsys.features.feature_set_file import FEED_SCHEMA

_HOUR_MS = 3_600_000
_LIST = 8  # items in a list
_OF_ANY_AGE = 4  # one rank in so many
_PUBLISH_EVERY_S = 900.0
_NEW = round(86_400 / _PUBLISH_EVERY_S)  # items published in a day


@dataclass
class WorldLog:
    """``hours`` of a drifting world. The seed changes people, items, drift, and the lists."""

    seed: int
    hours: float = 72.0
    users: int = 200
    items: int = 300
    requests_per_s: float = 0.04
    name: str = "world"
    window_s: float = 120.0
    utc_offset_h: float = 0.0
    vectors: dict[str, int] = field(default_factory=dict)
    dead_letters: Counter[str] = field(default_factory=Counter)
    repeats: int = 0

    def __post_init__(self) -> None:
        if self.hours <= 0:
            raise ValueError(f"hours is {self.hours}, expected a positive number of hours")
        self._made: list[Event] = []

    @property
    def schema(self) -> Schema:
        return replace(FEED_SCHEMA, shown_by="impression")

    @property
    def labels(self) -> list[str]:
        return list(self.schema.labels)

    def events(self, from_ms: int | None = None, until_ms: int | None = None) -> Iterator[Event]:
        """Items and users first, then everything in time order."""
        if not self._made:
            self._made = self._make()
        for event in self._made:
            state = not hasattr(event, "request_id")
            if (until_ms is None or event.time_ms < until_ms) and (
                state or from_ms is None or event.time_ms >= from_ms
            ):
                yield event

    def warmup(self) -> Iterator[Event]:
        """Nothing: there is no history from before."""
        return iter(())

    def world(self) -> World:
        """The simulated world; subclasses return another one."""
        return World(
            self.seed,
            self.users,
            self.items,
            publish_every_s=_PUBLISH_EVERY_S,
            requests_per_s=self.requests_per_s,
        )

    def _make(self) -> list[Event]:
        world = self.world()
        stop_ms = world.start_ms + round(self.hours * _HOUR_MS)
        catalogue = world.items(stop_ms)
        events: list[Event] = [*catalogue, *world.users()]
        for n, request in enumerate(world.next_requests(world.start_ms, stop_ms)):
            events.extend(self._answered(world, catalogue, f"r{n}", request.user_id, request.time_ms))
        first = [event for event in events if event.time_ms <= world.start_ms]
        later = [event for event in events if event.time_ms > world.start_ms]
        return first + sorted(later, key=lambda event: event.time_ms)

    def _answered(
        self, world: World, catalogue: list[Item], request_id: str, user_id: str, now_ms: int
    ) -> list[Event]:
        """One list with its engagements. ``catalogue``: oldest first, including items of the future."""
        num_published = sum(item.time_ms <= now_ms for item in catalogue)
        draws = [uniform(self.seed, "what", request_id, rank) for rank in range(_LIST)]
        ages = [
            draw * (num_published if n % _OF_ANY_AGE == 0 else min(_NEW, num_published))
            for n, draw in enumerate(draws)
        ]
        ids = list(dict.fromkeys(catalogue[num_published - 1 - int(age)].item_id for age in ages))
        done = world.react(user_id, ids, request_id, now_ms)
        seen = {str(e.item_id) for e in done if e.kind == "view"}
        served = [ServedItem(item_id=item_id) for item_id in ids if str(item_id) in seen]
        shown = Impression(time_ms=now_ms, request_id=request_id, user_id=user_id, items=served, shown=True)
        return [shown, *done]
