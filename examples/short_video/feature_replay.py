"""Past events as the server would have written them: with its session folds and features, without its model.

Publishes the items, then replays events into a catalogue, sessions and item counters of its own, so that each
impression carries the features that a server would have had at that moment. Pure: events in, events out.
"""

import msgspec
import numpy as np

from recsys.config.system_config import CovisitConfig
from recsys.events.event_types import Engagement, Event, Impression, Item, User
from recsys.events.hashing import Id
from recsys.features.catalogue import Catalogue
from recsys.features.covisits import Covisits
from recsys.features.feature_builder import FeatureBuilder
from recsys.features.feature_set import FeatureSet, Keys
from recsys.features.item_counters import ItemCounters
from recsys.features.session import Session


class FeatureReplay:
    """Replays the server over events in time order. ``shift_ms`` is added to every time.

    Event ids depend on the event alone, so an event that is written twice counts once. A user is held back
    until their first request; an engagement is dropped when its impression wasn't written.
    """

    def __init__(self, features: FeatureSet, seen: int = 500, shift_ms: int = 0) -> None:
        self.features, self.shift_ms = features, shift_ms
        self.impressions = 0
        self._seen = seen
        self._catalogue = Catalogue(features)
        self._counters, self._covisits = ItemCounters(features), Covisits(CovisitConfig())
        self._builder = FeatureBuilder(features)
        self._sessions: dict[str, Session] = {}
        self._users: dict[str, User] = {}
        self._requests: set[str] = set()

    def play(self, event: Event) -> list[Event]:
        """Events that the server would have written for this one, in order; often none."""
        if isinstance(event, Item):
            return [self._item(event)]
        if isinstance(event, User):
            return self._user(event)
        if isinstance(event, Impression):
            return [*self._arrival(event), self._impression(event)]
        if isinstance(event, Engagement) and event.attributed and event.request_id in self._requests:
            return [self._engagement(event)]
        return []

    def _item(self, event: Item) -> Item:
        self._catalogue.apply(event)
        return msgspec.structs.replace(
            event, time_ms=self._at(event.time_ms), event_id=f"past:item:{event.item_id}"
        )

    def _user(self, event: User) -> list[Event]:
        name = str(event.user_id)
        if name not in self._sessions:
            self._users[name] = event
            return []
        self._sessions[name].fold_user(event)
        self._counters.user(event)
        return [self._log_user(event, event.time_ms)]

    def _arrival(self, event: Impression) -> list[Event]:
        """Profile of a user who comes for the first time, if there is one."""
        name = str(event.user_id)
        if name in self._sessions:
            return []
        session = self._sessions[name] = Session(event.user_id, self.features, self._seen)
        profile = self._users.pop(name, None)
        if profile is None:
            return []
        session.fold_user(profile)
        self._counters.user(profile)
        return [self._log_user(profile, event.time_ms)]

    def _log_user(self, user: User, time_ms: int) -> User:
        about = f"past:user:{user.user_id}:{user.time_ms}"
        return msgspec.structs.replace(user, time_ms=self._at(time_ms), event_id=about)

    def _impression(self, event: Impression) -> Impression:
        indices = np.array([self._catalogue.ensure(s.item_id) for s in event.items], np.int64)
        session, now_ms = self._sessions[str(event.user_id)], self._at(event.time_ms)
        catalogue, counters = self._catalogue, self._counters.counters
        features = self._builder.build(
            session, event.surface, event.context, indices, catalogue, counters, now_ms,
            is_list=True, covisits=self._covisits,
        )  # fmt: skip
        served = msgspec.structs.replace(
            event,
            time_ms=now_ms,
            features=self._builder.as_shown(features).block(),
            event_id=f"past:{event.request_id}",
        )
        keys_NI = self._catalogue.keys[indices]
        session.fold_impression(served, keys_NI)
        self._counters.impression(served, keys_NI)
        self._requests.add(event.request_id)
        self.impressions += 1
        return served

    def _engagement(self, event: Engagement) -> Engagement:
        logged = msgspec.structs.replace(
            event,
            time_ms=self._at(event.time_ms),
            event_id=f"past:{event.request_id}:{event.item_id}:{event.kind}",
        )
        keys_I = self._keys_of(event.item_id)
        self._sessions[str(event.user_id)].fold_engagement(logged, keys_I)
        self._counters.engagement(logged, keys_I)
        self._covisits.add_within_limit(self._counters.visits.take())
        return logged

    def _keys_of(self, item_id: Id) -> Keys:
        index = self._catalogue.ensure(item_id)  # first: the keys may grow by it
        keys: Keys = self._catalogue.keys[index]
        return keys

    def _at(self, time_ms: int) -> int:
        return max(0, time_ms + self.shift_ms)
