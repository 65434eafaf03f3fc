"""The part that folds events into sessions: read a batch, load the users' sessions, fold, write, all at once.

Exactly once: a session skips events before its own offset, and the fold's place is written in one transaction
with the sessions. Whatever dies, the fold goes on from the place that the store has.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import msgspec

from recsys.clock import wall_ms
from recsys.config.system_config import Config
from recsys.events.control_records import Control, Erasure
from recsys.events.event_types import Engagement, Event, Impression, User
from recsys.events.hashing import Id
from recsys.events.records import CONTROL, EVENTS
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import feature_set
from recsys.features.session import Session
from recsys.log.protocol import Log, LogLost, LogUnavailable
from recsys.observability.recent_delays import Delays
from recsys.observability.tracer import Tracer, tracer_of
from recsys.process.open_log import open_log
from recsys.process.part_process import Stop
from serving.sessions.event_reader import EventReader, FoldEvent
from serving.sessions.session_fold import fold_event
from serving.sessions.session_store import FoldStore, PositionConflict, FoldPosition, RedisFoldStore, StoreUnavailable
from serving.tracing.swipe_traces import folded

NAME: Final = "session-fold"
_IN_MEMORY: Final = 2_000  # sessions kept here between batches: some 50 KB each
_HOLD_EVERY_MS: Final = 5_000


class SessionLoop:
    """The fold of ``events`` into sessions, one batch a turn."""

    def __init__(
        self,
        log: Log,
        store: FoldStore,
        features: FeatureSet,
        seen: int = 500,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        tracer: Tracer | None = None,
    ) -> None:
        self._log, self._store, self._features = log, store, features
        self._tracer = tracer
        self._seen, self._now_ms = seen, now_ms
        self.events = EventReader(log, features)
        self.delays = Delays()  # from a view's own time to its session's being written
        self.unreadable = 0  # packed sessions that couldn't be read: begun anew
        self._place: FoldPosition | None = None
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._control = 0
        self._held_ms = 0
        self._stale = True

    def turn(self, limit: int = 1_000) -> int:
        """Folds one batch; returns how many records it moved on. After an error it begins again from the
        place that the store has."""
        if self._stale:
            self._go_on()
        self._stale = True
        began_ns = time.time_ns() if self._tracer else 0
        before = sum(self.events.offsets) + self._control
        batch = self.events.read(limit)
        erased = self._read_control()
        moved = sum(self.events.offsets) + self._control - before
        if moved:
            users = [_user_of(read.event) for read in batch]
            users += [said.user_id for said in erased.values()]
            self._load({str(user): user for user in users if user is not None})
            changed, gone = self._fold(batch, erased)
            self._commit(changed, gone)
            self._measure(batch)
            if self._tracer:
                folded(self._tracer, [read.event for read in batch], began_ns, time.time_ns())
        self._hold()
        self._stale = False
        return moved

    def _go_on(self) -> None:
        place = self._store.place()
        if place is not None and place.log_id != self._log.id:
            raise LogLost(
                f"the sessions are folded from log {place.log_id}, this one is {self._log.id}: "
                "empty the session store, or give it the state folder that it belongs to"
            )
        self._sessions.clear()
        self._place = place
        self._control = self._log.begin(CONTROL, 0) if place is None else place.control
        self.events.seek(None if place is None else place.events)

    def _read_control(self) -> dict[str, Erasure]:
        """The newest erasure of each user."""
        erased: dict[str, Erasure] = {}
        while records := self._log.read(CONTROL, 0, self._control):
            for record in records:
                try:
                    said: Control = _control.decode(record.value)
                except msgspec.MsgspecError:
                    continue  # of a newer version: not for sessions
                if isinstance(said, Erasure) and said.user_id != "":
                    erased[str(said.user_id)] = said
            self._control = records[-1].offset + 1
        return erased

    def _load(self, users: dict[str, Id]) -> None:
        absent = [name for name in users if name not in self._sessions]
        for name, blob in zip(absent, self._store.load(absent), strict=True):
            self._sessions[name] = self._unpack(users[name], blob)

    def _unpack(self, user_id: Id, blob: bytes | None) -> Session:
        if blob is not None:
            try:
                return Session.unpack(blob, self._features, self._seen)
            except (msgspec.MsgspecError, ValueError):
                self.unreadable += 1
        return Session(user_id, self._features, self._seen)

    def _fold(
        self, batch: Iterable[FoldEvent], erased: Mapping[str, Erasure]
    ) -> tuple[set[str], set[str]]:
        """Folds events into the loaded sessions; the users changed, and those gone.

        An erasure takes what was known before this batch. Where its tombstone was folded already, that has
        taken all: what is there came after it, of a user who is back, and is kept.
        """
        changed: set[str] = set()
        gone: set[str] = set()
        for name, said in erased.items():
            if self._sessions[name].offset <= said.offset:
                self._sessions[name] = Session(said.user_id, self._features, self._seen)
                gone.add(name)
        for _, offset, event in batch:
            user_id = _user_of(event)
            if user_id is None:
                continue
            name = str(user_id)
            session = self._sessions[name]
            if offset < session.offset:
                continue
            if isinstance(event, User) and event.removed:
                session = self._sessions[name] = Session(user_id, self._features, self._seen)
                changed.discard(name)
                gone.add(name)
            else:
                fold_event(session, event, self.events.keys_of)
                changed.add(name)
                gone.discard(name)
            session.offset = offset + 1
        return changed, gone

    def _commit(self, changed: set[str], gone: set[str]) -> None:
        packed = {name: self._sessions[name].pack() for name in sorted(changed - gone)}
        after = FoldPosition(self._log.id, list(self.events.offsets), self._control)
        self._store.commit(self._place, after, packed, sorted(gone))
        self._place = after
        for name in gone:
            self._sessions.pop(name, None)
        for name in changed - gone:
            self._sessions.move_to_end(name)
        while len(self._sessions) > _IN_MEMORY:
            self._sessions.popitem(last=False)

    def _measure(self, batch: Iterable[FoldEvent]) -> None:
        events = [read.event for read in batch]
        views = [e.time_ms for e in events if isinstance(e, Engagement) and e.kind == "view"]
        self.delays.since(views, self._now_ms())

    def _hold(self) -> None:
        """Tells the log from where this fold would begin again."""
        now_ms = self._now_ms()
        if now_ms - self._held_ms >= _HOLD_EVERY_MS and self._place is not None:
            self._held_ms = now_ms
            for partition, offset in enumerate(self._place.events):
                self._log.hold(NAME, EVENTS, partition, offset)


def _user_of(event: Event) -> Id | None:
    return event.user_id if isinstance(event, User | Impression | Engagement) else None


def run(config: Config, stop: Stop) -> None:
    """The part: turns until it is asked to stop; waits while the store or the log is away."""
    log = open_log(config)
    store = RedisFoldStore(config.sessions.url, config.sessions.ttl_s)
    tracer = tracer_of(config, NAME)
    loop = SessionLoop(log, store, feature_set(config), config.sessions.seen, tracer=tracer)
    logger = logging.getLogger(__name__)
    try:
        starting = True  # until the first turn is done, which reads the whole catalogue
        while not stop.is_set(starting):
            try:
                moved = loop.turn()
                starting = False
            except (StoreUnavailable, LogUnavailable, PositionConflict) as error:
                stop.heartbeat.add("failed_turns")
                logger.warning("turn failed, trying again", extra={"error": str(error)})
                _tell_delay(loop, stop)
                stop.wait(0.3, starting)
                continue
            _tell(loop, stop, moved)
            _tell_delay(loop, stop)
            if tracer:
                tracer.count(stop.heartbeat)
            if not moved:
                log.wait(EVENTS, 0.05)
    finally:
        if tracer:
            tracer.close()
        store.close()
        log.close()


def _tell(loop: SessionLoop, stop: Stop, moved: int) -> None:
    beat = stop.heartbeat
    beat.add("events", moved)
    beat.offsets(EVENTS, loop.events.offsets)
    if moved:
        beat.gauge("repeats", loop.events.repeats)
        beat.gauge("unreadable", loop.events.unreadable + loop.unreadable)


def _tell_delay(loop: SessionLoop, stop: Stop) -> None:
    name = "click_to_session_p95_ms"
    stop.heartbeat.only(name, loop.delays.p95(name, wall_ms()))


_control = msgspec.msgpack.Decoder(Control)
