"""Past sessions of some users, rebuilt from the events of an archive. Pure."""

from collections import deque

from plugins.answer_explanation.reconstructed_answer import fold_events
from plugins.feature_audit.audit_source import PlacedImpression
from plugins.feature_audit.recompute import EventReader, EventsOf, ItemHistory, PlacedEvent
from recsys.features.session import Session


class SessionsAsOf:
    """Rebuilds past sessions of some users, going forward. Item keys are those at the time of an event."""

    def __init__(self, items: ItemHistory, events_of: EventsOf, users: set[str], seen: int = 500) -> None:
        self._items, self._users, self._seen = items, users, seen
        self._events_of = events_of
        self._readers: dict[int, EventReader] = {}
        self._waiting: dict[str, deque[PlacedEvent]] = {}
        self._sessions: dict[str, Session] = {}

    def of(self, shown: PlacedImpression) -> Session:
        """The session before an impression: up to the offset of its stamp, if it has one."""
        impression, features = shown.impression, self._items.features
        user_id, stamp = impression.user_id, impression.stamp
        name = str(user_id)
        if stamp is not None and impression.inputs is not None:
            if not stamp.session_offset or "session" in impression.degraded:
                return Session(user_id, features, self._seen)
            stop = min(stamp.session_offset, shown.offset)
        else:
            stop = shown.offset
        before = self._sessions.get(name)
        if before is not None and before.offset > stop:  # answers of two replicas, in another order
            past = SessionsAsOf(self._items, self._events_of, {name}, self._seen)
            return past.of(shown)
        self._read(shown.partition, stop)
        session = self._sessions.setdefault(name, Session(user_id, features, self._seen))
        waiting, events = self._waiting.get(name, deque()), list[PlacedEvent]()
        while waiting and waiting[0][0] < stop:
            events.append(waiting.popleft())
        self._sessions[name] = session = fold_events(session, events, self._items.by_time)
        return session

    def _read(self, partition: int, stop: int) -> None:
        reader = self._readers.get(partition)
        if reader is None:
            reader = self._readers[partition] = EventReader(self._events_of(partition))
        for offset, event in reader.until(stop):
            name = str(getattr(event, "user_id", ""))
            if name in self._users:
                self._waiting.setdefault(name, deque()).append((offset, event))
