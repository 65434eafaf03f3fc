"""An honest past for tests of audit and backfill: events with features as a server would have written them,
by partition and offset, and the items."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from msgspec.structs import replace

from examples.short_video.feature_replay import FeatureReplay
from plugins.backfill.sessions import SessionsAsOf
from plugins.feature_audit.audit_source import DecodedRecord, PlacedImpression
from plugins.feature_audit.recompute import CountersAsOf, ItemHistory
from recsys.events.event_types import Event, Impression, Item, User
from recsys.events.hashing import partition_of
from recsys.features.feature_set import FeatureSet
from recsys.features.session import Session
from serving.sessions.session_fold import fold_event
from tests.support.training.small_feed import FEATURES, PARTITIONS, START_MS, feed


@dataclass
class ToyPast:
    """``partitions[p]``: events with their offsets. Change them to plant skew."""

    features: FeatureSet = FEATURES
    items: list[Item] = field(default_factory=list)
    partitions: list[list[tuple[int, Event]]] = field(default_factory=lambda: [[] for _ in range(PARTITIONS)])

    def add(self, event: Event) -> None:
        user = getattr(event, "user_id", None)
        for p in range(PARTITIONS) if user is None else [partition_of(user, PARTITIONS)]:
            self.partitions[p].append((len(self.partitions[p]), event))

    def history(self, features: FeatureSet | None = None) -> ItemHistory:
        history = ItemHistory(features or self.features)
        for offset, item in enumerate(self.items):
            history.take(offset, item)
        return history

    def events(self, partition: int) -> Iterator[DecodedRecord]:
        return iter(self.partitions[partition])

    def shown(self) -> list[PlacedImpression]:
        return [
            PlacedImpression(p, offset, event)
            for p, events in enumerate(self.partitions)
            for offset, event in events
            if isinstance(event, Impression)
        ]

    def counters(self, items: ItemHistory) -> CountersAsOf:
        return CountersAsOf(items, self.events, PARTITIONS)

    def sessions(self, items: ItemHistory) -> SessionsAsOf:
        users = {str(its.impression.user_id) for its in self.shown()}
        return SessionsAsOf(items, self.events, users)

    def session_of(self, items: ItemHistory, shown: PlacedImpression) -> Session:
        """One session, from the beginning: an oracle without state."""
        session = Session(shown.impression.user_id, items.features)
        for offset, event in self.partitions[shown.partition]:
            mine = getattr(event, "user_id", None) == shown.impression.user_id
            if offset < shown.offset and mine:
                fold_event(session, event, items.by_time(event.time_ms))
        return session


def toy_past(requests: int = 60) -> ToyPast:
    """Each time is another one, as what came first at a time isn't known of several partitions."""
    past = ToyPast()
    server = FeatureReplay(FEATURES)
    told: list[Event] = [_item(n, 0) for n in range(9)]
    told += [
        User(time_ms=START_MS - 500 + n, user_id=f"u{n}", fields={"country": f"c{n % 3}"}) for n in range(8)
    ]
    events = [e for e in feed(requests) if not isinstance(e, Impression)]
    events += [replace(e, features=None) for e in feed(requests) if isinstance(e, Impression)]
    events.append(_item(4, 1, START_MS + 400 * (requests // 2) + 1))
    events.sort(key=lambda event: event.time_ms)
    for n, event in enumerate([*told, *events]):
        for its in server.play(replace(event, time_ms=START_MS + 1_000 * n)):
            if isinstance(its, Item):
                past.items.append(its)
            else:
                past.add(its)
    return past


def _item(n: int, version: int, time_ms: int = START_MS) -> Item:
    fields = {"author": f"a{(n + version) % 4}", "tags": [f"t{n % 3}"], "duration_ms": 5_000 + 900 * n}
    return Item(time_ms=time_ms, item_id=f"v{n}", fields=fields)
