"""Part that folds events into sessions: reads a batch, loads the users' sessions, folds, writes all at once.

Exactly once: a session skips events before its own offset, and one transaction writes the sessions and the
fold's position. After a crash the fold resumes from the stored position.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from typing import Final

import msgspec

from recsys.app.set_loops import SetLoops, qualified
from recsys.clock import is_due, machine_ns, timer_of
from recsys.config.system_config import Config
from recsys.events.control_records import Erasure
from recsys.events.event_types import Engagement, Event, Impression, Preference, User
from recsys.events.hashing import Id, partition_of
from recsys.events.records import CONTROL, EVENTS
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import feature_set
from recsys.features.session import Session
from recsys.log.protocol import Log, LogLost, LogUnavailable
from recsys.observability.recent_delays import RecentDelays
from recsys.observability.tracer import Tracer, open_tracer
from recsys.process.clock_file import clock_of
from recsys.process.fold import PartFold, follow
from recsys.process.log_consumer import Consumer, decoded
from recsys.process.open_log import open_log
from recsys.process.part_process import Heartbeat, Stop
from recsys.process.worker_share import WHOLE, Share
from serving.sessions.event_reader import EventReader, FoldEvent
from serving.sessions.open_store import fold_store, take_over
from serving.sessions.session_fold import fold_event
from serving.sessions.session_store import (
    FoldPosition,
    FoldStore,
    PositionConflict,
    RedisFoldStore,
    StoreUnavailable,
)
from serving.sessions.sqlite_sessions import SqliteFoldStore
from serving.tracing.swipe_traces import folded

NAME: Final = "session-fold"
_IN_MEMORY: Final = 2_000  # sessions kept between batches, of about 50 KB each
_HOLD_EVERY_MS: Final = 5_000
_SCRUB_EVERY_S: Final = 600.0
_DELAY: Final = "view_to_session_p95_ms"
_LOG: Final = logging.getLogger(__name__)


class SessionLoop:
    """Folds ``events`` into sessions, one batch a turn."""

    def __init__(
        self, log: Log, store: FoldStore, features: FeatureSet, now_ms: Callable[[], int], seen: int = 500,
        tracer: Tracer | None = None, name: str = "", share: Share = WHOLE,
    ) -> None:  # fmt: skip
        """``name``: of the feature set, if it isn't the first (recsys/app/set_loops.py)."""
        self._log, self._store, self._features = log, store, features
        self._name = qualified(NAME, name)
        self._tracer = tracer
        self._seen, self._now_ms, self._timer_ms = seen, now_ms, timer_of(now_ms)
        self.events = EventReader(log, features, share)
        self.delays = RecentDelays()  # from a view's own time to the write of its session
        self.rows_evicted = 0  # counter rows of viewers
        self.unreadable = 0  # packed sessions that couldn't be read: started anew
        self._position: FoldPosition | None = None
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        # Deleted sessions that the store's files may still hold; some of before a restart.
        self.gone = 1
        self._control = Consumer(log, CONTROL, [0])
        self._held_ms = 0
        self._stale = True

    @property
    def offsets(self) -> list[int]:
        return self.events.offsets

    def turn(self, limit: int = 1_000) -> int:
        """Folds one batch; returns its number of records. After an error the next resumes as stored."""
        if self._stale:
            self._resume()
        self._stale = True
        began_ns = machine_ns() if self._tracer else 0
        before = sum(self.events.offsets) + self._control.offsets[0]
        batch = self.events.read(limit)
        erasures = self._read_control()
        moved = sum(self.events.offsets) + self._control.offsets[0] - before
        if moved:
            users = [_user_of(entry.event) for entry in batch]
            users += [erasure.user_id for erasure in erasures.values()]
            self._load({str(user): user for user in users if user is not None})
            self._commit(*self._fold(batch, erasures))
            self._measure(batch)
            if self._tracer:
                folded(self._tracer, [entry.event for entry in batch], began_ns, machine_ns())
        self._hold()
        self._stale = False
        return moved

    def end(self) -> None:
        """Removes the sessions, and releases the log."""
        self._log.release(self._name, EVENTS)
        self._store.remove()

    def _resume(self) -> None:
        position = self._store.position()
        if position is not None and position.log_id != self._log.id:
            raise LogLost(
                f"the sessions are folded from log {position.log_id}, this one is {self._log.id}: "
                "empty the session store, or start with the state folder that it belongs to"
            )
        self._sessions.clear()
        self._position = position
        control = None if position is None else {0: position.control}
        self._control = Consumer(self._log, CONTROL, [0], control)
        self.events.seek(None if position is None else position.events)

    def _read_control(self) -> dict[str, Erasure]:
        """Newest erasure of each user of the partitions."""
        erasures = [erasure for _, erasure in decoded(self._control.drain(), Erasure)]
        return {str(e.user_id): e for e in erasures if e.user_id != "" and self._has(e.user_id)}

    def _has(self, user_id: Id) -> bool:
        return partition_of(user_id, len(self.events.offsets)) in self.events.partitions

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

    def _fold(self, batch: Iterable[FoldEvent], erasures: Mapping[str, Erasure]) -> tuple[set[str], set[str]]:
        """Folds events into the loaded sessions; returns the users changed, and those gone.

        An erasure clears what was known before this batch. If its tombstone was folded already, that has
        cleared everything: the session then holds later events of a returning user, and stays.
        """
        changed: set[str] = set()
        gone: set[str] = set()
        for name, erasure in erasures.items():
            if self._sessions[name].offset <= erasure.offset:
                self._sessions[name] = Session(erasure.user_id, self._features, self._seen)
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
        lasting = {name: self._sessions[name].lasting() for name in packed}
        after = FoldPosition(self._log.id, list(self.events.offsets), self._control.offsets[0])
        self._store.commit(self._position, after, packed, sorted(gone), lasting)
        self._position = after
        self.gone += len(gone)
        for name in gone:
            self._sessions.pop(name, None)
        for name in changed - gone:
            self._sessions.move_to_end(name)
            self.rows_evicted += self._sessions[name].evicted
            self._sessions[name].evicted = 0
        while len(self._sessions) > _IN_MEMORY:
            self._sessions.popitem(last=False)

    def _measure(self, batch: Iterable[FoldEvent]) -> None:
        events = [entry.event for entry in batch]
        views = [e.time_ms for e in events if isinstance(e, Engagement) and e.kind == "view"]
        self.delays.since(views, self._now_ms())

    def _hold(self) -> None:
        """Has the log keep the records after the position."""
        now_ms = self._timer_ms()
        due = is_due(now_ms, self._held_ms + _HOLD_EVERY_MS, _HOLD_EVERY_MS)
        if due and self._position is not None:
            self._held_ms = now_ms
            for partition, offset in enumerate(self._position.events):
                if offset >= 0:
                    self._log.hold(self._name, EVENTS, partition, offset)


def _user_of(event: Event) -> Id | None:
    return event.user_id if isinstance(event, User | Preference | Impression | Engagement) else None


class SessionPart(PartFold):
    """Folds of all feature sets in use. After an error each resumes as stored."""

    away = (StoreUnavailable, LogUnavailable, PositionConflict)

    def __init__(self, log: Log, config: Config, share: Share, tracer: Tracer | None) -> None:
        self._log, self._config, self._share, self.tracer = log, config, share, tracer
        self._clock = clock_of(config)
        self._stores: dict[str, RedisFoldStore | SqliteFoldStore] = {}
        self._loops: SetLoops[SessionLoop] | None = None
        self._scrub_s = time.monotonic()

    def _make(self, name: str, features: FeatureSet) -> SessionLoop:
        partitions, seen = self._log.partitions(EVENTS), self._config.sessions.seen
        store = self._stores[name] = fold_store(self._config, name, self._share, partitions)
        if copied := take_over(self._config, store, name, self._share):
            _LOG.info("sessions taken over from the state folder's file", extra={"sessions": copied})
        return SessionLoop(self._log, store, features, self._clock, seen, self.tracer, name, self._share)

    def _turn(self) -> int:
        if self._loops is None:
            self._loops = SetLoops(self._log, feature_set(self._config), self._make)
        return self._loops.turn()

    def _restore(self) -> None:
        """Nothing: each loop resumes by itself."""

    def report(self, beat: Heartbeat, moved: int) -> None:
        assert self._loops is not None, "turn first"
        self._loops.report(beat)
        loop = self._loops.oldest
        if loop.gone and time.monotonic() >= self._scrub_s:
            self._scrub_s = time.monotonic() + _SCRUB_EVERY_S
            if next(iter(self._stores.values())).scrub():
                loop.gone = 0
        beat.add("events", moved)
        beat.offsets(EVENTS, loop.events.offsets)
        if moved:
            beat.gauge("repeats", loop.events.repeats)
            beat.gauge("rows_evicted", loop.rows_evicted)
            beat.gauge("unreadable", loop.events.unreadable + loop.unreadable)

    def report_delays(self, beat: Heartbeat) -> None:
        if self._loops is not None:
            delays = self._loops.oldest.delays.p95(_DELAY, self._clock())
            beat.replace_gauges(_DELAY, delays)

    def wait(self) -> None:
        self._log.wait(EVENTS, 0.5)

    def close(self) -> None:
        for store in self._stores.values():
            store.close()


@contextmanager
def opened(
    config: Config, share: Share = WHOLE, whole: Callable[[Log], Log] = lambda log: log
) -> Iterator[SessionPart]:
    """The part's fold. ``whole``: adds to the log what it has lost, for sets that are new."""
    tracer = open_tracer(config, NAME)
    with (
        closing(whole(open_log(config))) as log,
        closing(SessionPart(log, config, share, tracer)) as part,
        closing(tracer) if tracer else nullcontext(),
    ):
        yield part


def run(
    config: Config, stop: Stop, share: Share = WHOLE, whole: Callable[[Log], Log] = lambda log: log
) -> None:
    """Runs the part until it is asked to stop; waits while the store or the log is away."""
    with opened(config, share, whole) as part:
        follow(part, stop, _LOG)
