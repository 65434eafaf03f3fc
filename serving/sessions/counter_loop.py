"""Part that counts all viewers' events by item.

A worker alone has one table of all partitions, and publishes it in ``item_state``. One of several has a table
of each of its partitions, since sums in float32 depend on the order of events: it appends what changes, and
each new visit once, to ``item_counts``, which serving/sessions/counter_sums.py adds up. Neither goes on from
the snapshot of the other: it counts anew from the beginning of log and archive.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Final

import msgspec
import numpy as np
from msgspec.structs import replace

from recsys.app.set_loops import SetLoops, qualified
from recsys.clock import is_due, machine_ms
from recsys.config.safety_config import BoundsConfig
from recsys.config.system_config import Config, CovisitConfig
from recsys.events.event_types import Engagement, Event, Impression, User, Verdict, Withdrawal
from recsys.events.hashing import Id
from recsys.events.records import EVENTS, ITEM_COUNTS, CovisitRows, pack
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import feature_set
from recsys.features.item_counters import ItemCounters
from recsys.log.protocol import Append, Log
from recsys.process.fold import PartFold, follow
from recsys.process.log_consumer import hold_available
from recsys.process.open_log import open_log
from recsys.process.part_process import Heartbeat, Stop
from recsys.process.part_snapshot import PartState, Saved, ShareState
from recsys.process.worker_share import WHOLE, Share, leased
from serving.sessions.event_reader import EventReader, FoldEvent
from serving.sessions.item_states import ItemStates, kept_below, newest_offsets, state_of, states_of

NAME: Final = "counters"
SUMS: Final = "item-sums"  # snapshots of what adds up the counters of several workers
_PUBLISH_EVERY_MS: Final = 100
_SAVE_EVERY_MS: Final = 5_000
_SAVE_SHARE: Final = 0.05  # most of the time that may go into snapshots, however large they are
_NAMED: Final = 20  # users in quarantine whom the status names
_LOG: Final = logging.getLogger(__name__)


class _Snapshot(msgspec.Struct):
    """Snapshot of the counters, with remembered requests, quarantined users and bounds of influence."""

    features: str
    keys: bytes
    values: bytes
    last_ms: bytes
    requests: list[tuple[str, int]]
    segments: list[tuple[str, int]]
    quarantined: list[str]
    influences: dict[int, bytes]
    covisits: CovisitRows
    visitors: list[tuple[int, bytes]]
    sources: list[tuple[str, dict[int, list[str]]]]
    operators: bytes
    lists: bytes
    readings: dict[int, bytes]
    viewers: list[tuple[int, int]]


class CounterLoop:
    """Folds ``events`` into item counters, ``folds`` by partition. ``state``: keeps its snapshots; None: it
    takes none. ``now_ms``: when to publish and save. ``name``: of the feature set, if it isn't the first
    (recsys/app/set_loops.py).

    Raises LogLost if the snapshot belongs to another log. An unreadable snapshot is skipped, in favour of the
    one before it or of what the log still holds.
    """

    topic, part = EVENTS, NAME  # that it reads, and the name of its snapshots
    places: list[int]  # next of the topic to read, by partition
    offsets: list[int]  # next of ``events`` to count, by partition
    states: ItemStates | None = None  # None: another process writes ``item_state``

    def __init__(
        self, log: Log, features: FeatureSet, state: PartState | None = None,
        now_ms: Callable[[], int] = machine_ms, bounds: BoundsConfig | None = None,
        covisits: CovisitConfig | None = None, name: str = "", share: Share = WHOLE,
    ) -> None:  # fmt: skip
        self._log, self._features, self._now_ms = log, features, now_ms
        self._name, self._count = name, log.partitions(EVENTS)
        count = self._count
        self._state = None if state is None else ShareState(state, self.topic, count, share)
        self._published_ms = self._saved_ms = self.rows_evicted = 0
        self._save_every_ms = _SAVE_EVERY_MS
        # Offsets of events on item_counts by partition: before this loop began, and sent by it.
        self._before, self._sent = dict[int, int](), dict[int, int]()
        self._begin(share, bounds, covisits)

    def _begin(self, share: Share, bounds: BoundsConfig | None, covisits: CovisitConfig | None) -> None:
        self.events = EventReader(self._log, self._features, share)
        own = self.events.partitions
        self._tables = 1 if share.whole else self._count  # of all workers
        made = own[:1] if share.whole else own
        tables = self._tables
        folds = [ItemCounters(self._features, bounds, self._count, covisits, tables) for _ in made]
        self.fold, self.folds = folds[0], {p: folds[n % len(folds)] for n, p in enumerate(own)}
        if share.whole:
            self.states = ItemStates(self._log, self._name, self.fold.counters, covisits)
        else:
            for p in own:
                newest = newest_offsets(self._log, (ITEM_COUNTS, p), self._name, [p])
                self._before[p] = max(newest, default=0)
        restored = self._restore()
        self._anew = {p for p in self._before if restored[p] < 0}  # until all of it is sent
        self.events.seek(restored)
        self.places = self.offsets = self.events.offsets

    def turn(self, limit: int = 1_000) -> int:
        """Reads one batch, publishes and saves if due; returns how many records it read."""
        moved, now_ms = self._read(limit), self._now_ms()
        if is_due(now_ms, self._published_ms + _PUBLISH_EVERY_MS, _PUBLISH_EVERY_MS):
            self._published_ms = now_ms
            self.publish()
        if is_due(now_ms, self._saved_ms + self._save_every_ms, self._save_every_ms):
            self.save()
        return moved

    def publish(self) -> None:
        """Appends what changed."""
        if self.states is not None:
            changed, visits_VC = self.fold.take_changed(), self.fold.visits.take()
            self.states.publish(self.offsets, changed, visits_VC)
        for partition, before in self._before.items():
            # The first time also what was sent before: it may have been lost, or sent in part.
            if self.offsets[partition] >= max(before, self._sent.get(partition, 0) + 1):
                self._send(partition)

    def save(self) -> None:
        """Takes a snapshot; the log then keeps everything after the snapshot before it."""
        if self._state is None or any(self.offsets[p] < n for p, n in self._before.items()):
            return  # what changes until there isn't sent yet, and a snapshot doesn't say what it was
        self.publish()  # visits, or readers would miss those that the snapshot has
        began_s = time.monotonic()
        held = self._state.save(self._log.id, dict(enumerate(self.places)), self._pack)
        # A snapshot that was skipped may reach back behind the beginning of the log.
        hold_available(self._log, qualified(self.part, self._name), self.topic, held)
        self._saved_ms = self._now_ms()
        took_ms = (time.monotonic() - began_s) * 1000
        self._save_every_ms = max(_SAVE_EVERY_MS, int(took_ms / _SAVE_SHARE))

    def end(self) -> None:
        """Releases the log and removes the snapshots; published counters go with the next trim."""
        self._log.release(qualified(self.part, self._name), self.topic)
        if self.states is not None:
            self.states.end()
        if self._state is not None:
            self._state.remove()

    def report(self, beat: Heartbeat, moved: int) -> None:
        """Writes the state after a turn that read so many records into a heartbeat."""
        beat.add("events", moved)
        beat.offsets(EVENTS, self.offsets)
        folds = set(self.folds.values())
        beat.gauge("counters", sum(len(fold.counters) for fold in folds))
        beat.gauge("counters_evicted", self.rows_evicted)
        beat.gauge("contacts", sum(len(fold.operators) for fold in folds))
        for name in self.fold.operators.evicted:
            beat.gauge(f"{name}_evicted", sum(fold.operators.evicted[name] for fold in folds))
        held = sorted(user for fold in folds for user in fold.quarantined)
        beat.gauge("quarantined", len(held))
        beat.names("quarantined", held[:_NAMED])
        beat.gauge("unread_lists_evicted", sum(fold.lists.evicted for fold in folds))
        beat.gauge("covisit_users_forgotten", sum(fold.visits.forgotten for fold in folds))
        if self.states is not None:
            self.states.report(beat)

    def _read(self, limit: int) -> int:
        before = sum(self.offsets)
        events = self.events.read(limit)
        pasts = self._pasts(events)
        for partition, offset, event in events:
            fold = self.folds[partition]
            if isinstance(event, Impression):
                fold.impression(event, self.events.shown_keys(event), partition)
            elif isinstance(event, Engagement):
                fold.engagement(event, self.events.keys_of(event.item_id), partition)
            elif isinstance(event, User):
                fold.user(event, partition)
            elif isinstance(event, Verdict | Withdrawal):
                own = pasts[partition][str(event.user_id)]
                past = [earlier for at, earlier in own if at < offset]
                if isinstance(event, Verdict):
                    fold.verdict(event, past, self.events.keys_of, partition)
                else:
                    fold.withdraw(event, past, self.events.keys_of, partition)
            if offset < self._before.get(partition, 0):
                fold.visits.take()  # sent before a restart
        for fold in set(self.folds.values()):
            dropped = kept_below(fold.counters, self._tables)
            self.rows_evicted += len(dropped)
            if self.states is not None and len(dropped):
                self.states.dropped = np.append(self.states.dropped, dropped)
        return sum(self.offsets) - before

    def _pasts(self, events: Sequence[FoldEvent]) -> dict[int, dict[str, list[tuple[int, Event]]]]:
        """By partition and user, all events of those who have a verdict or a withdrawal among these."""
        users: dict[int, set[Id]] = {}
        for partition, _, event in events:
            if isinstance(event, Verdict | Withdrawal):
                users.setdefault(partition, set()).add(event.user_id)
        ends = self.events.offsets
        return {p: self.events.of_users(ids, p, ends[p]) for p, ids in users.items()}

    def _send(self, partition: int) -> None:
        """Appends the changes of a partition, and how far it is. They are all counters if it began anew."""
        fold, offset = self.folds[partition], self.offsets[partition]
        touched, place = set(fold.operators.touched), ([offset], self._name)
        summed = [key for key in fold.take_changed() if key not in touched]
        states = [
            state_of(place, visits=fold.visits.take().tobytes()),
            *states_of(fold.counters, summed, place),
            *states_of(fold.counters, sorted(touched), place, touched=True),
        ]
        whole, parts = partition in self._anew, len(states)
        marked = (replace(s, part=n, parts=parts, whole=whole) for n, s in enumerate(states))
        self._log.append(ITEM_COUNTS, [Append(partition, b"", pack(state)) for state in marked])
        self._sent[partition] = offset
        self._anew.discard(partition)

    def _pack(self, partitions: Sequence[int]) -> bytes:
        fold = self.folds[partitions[0]]
        keys, values, last_ms = (column.tobytes() for column in fold.counters.export())
        contexts, segments = fold.context_by_request.items(), fold.segment_by_request.items()
        snapshot = _Snapshot(
            self._features.digest, keys, values, last_ms,
            list(contexts), list(segments), sorted(fold.quarantined),
            {partition: bounds.pack() for partition, bounds in fold.influences.items()},
            CovisitRows() if self.states is None else self.states.covisits.export(),
            list(fold.visits.users.items()), list(fold.credits.requests.items()), fold.operators.pack(),
            fold.lists.pack(), {p: bounds.pack() for p, bounds in fold.readings.items()},
            list(fold.segments.items()),
        )  # fmt: skip
        return msgspec.msgpack.encode(snapshot)

    def _load(self) -> dict[int, Saved]:
        """The newest snapshots by partition."""
        saved = self._state.load(self._log.id) if self._state else {}
        for note in self._state.notes if self._state else ():
            _LOG.warning("%s", note)
        return saved

    def _restore(self) -> list[int]:
        """Loads the snapshots and returns their offsets, -1 for partitions without a usable one."""
        offsets = [-1] * self._count
        try:
            for partition, saved in self._load().items():
                places = saved.offsets[EVENTS]
                if offsets[partition] >= 0 or len(places) * self._tables != len(offsets):
                    continue  # restored already, or of another form
                snapshot = msgspec.msgpack.decode(saved.blob, type=_Snapshot)
                if snapshot.features == self._features.digest:  # others count other keys
                    self._restore_fold(self.folds[partition], snapshot)
                    offsets = [places.get(p, offset) for p, offset in enumerate(offsets)]
        except (ValueError, msgspec.MsgspecError) as error:
            _LOG.warning("the counters' snapshot can't be read, counting from the log: %s", error)
        return offsets

    def _restore_fold(self, fold: ItemCounters, snapshot: _Snapshot) -> None:
        fold.counters.put(snapshot.keys, snapshot.values, snapshot.last_ms)
        fold.context_by_request.update(snapshot.requests)
        fold.segment_by_request.update(snapshot.segments)
        fold.quarantined.update(snapshot.quarantined)
        fold.influences.restore(snapshot.influences.items())
        if self.states is not None:
            self.states.covisits.put(snapshot.covisits)
        fold.visits.users.update(snapshot.visitors)
        fold.credits.requests.update(snapshot.sources)
        fold.operators.restore(snapshot.operators)
        fold.lists.restore(snapshot.lists)
        fold.readings.restore(snapshot.readings.items())
        fold.segments.update(snapshot.viewers)


class CounterPart(PartFold):
    """Counts of all feature sets in use. After an error they restart from their snapshots."""

    def __init__(self, log: Log, config: Config, share: Share, kind: type[CounterLoop]) -> None:
        self._log, self._config, self._share, self._kind = log, config, share, kind
        self._loops: SetLoops[CounterLoop] | None = None

    def _make(self, name: str, features: FeatureSet) -> CounterLoop:
        config, kind, log = self._config, self._kind, self._log
        state = PartState(config.state, qualified(kind.part, name))
        bounds, covisits = config.bounds, config.covisits
        if self._share.whole and kind is CounterLoop:
            # What several workers sent isn't added up any more.
            PartState(config.state, qualified(SUMS, name)).remove()
            log.release(qualified(SUMS, name), ITEM_COUNTS)
        return kind(log, features, state, bounds=bounds, covisits=covisits, name=name, share=self._share)

    def _turn(self) -> int:
        if self._loops is None:
            self._loops = SetLoops(self._log, feature_set(self._config), self._make)
        return self._loops.turn()

    def _restore(self) -> None:
        self._loops = None

    def report(self, beat: Heartbeat, moved: int) -> None:
        assert self._loops is not None, "turn first"
        self._loops.report(beat)
        self._loops.oldest.report(beat, moved)

    def wait(self) -> None:
        self._log.wait(self._kind.topic, 0.5)

    def save(self) -> None:
        """Takes the last snapshots."""
        if self._loops is not None and not self.needs_restore:
            for loop in self._loops.loops.values():
                loop.save()


@contextmanager
def opened(
    config: Config, share: Share = WHOLE, whole: Callable[[Log], Log] = lambda log: log,
    kind: type[CounterLoop] = CounterLoop,
) -> Iterator[CounterPart]:  # fmt: skip
    """The part's fold, which saves at the end. ``whole``: adds to the log what it has lost, for folds that
    begin anew."""
    with closing(whole(open_log(config))) as log, ExitStack() as locks:
        partitions = share.partitions(log.partitions(EVENTS))
        locks.enter_context(leased(config.state, kind.part, partitions))
        part = CounterPart(log, config, share, kind)
        yield part
        part.save()


def run(
    config: Config, stop: Stop, share: Share = WHOLE, whole: Callable[[Log], Log] = lambda log: log,
    kind: type[CounterLoop] = CounterLoop,
) -> None:  # fmt: skip
    """Runs the part until it is asked to stop, then saves."""
    with opened(config, share, whole, kind) as part:
        follow(part, stop, _LOG)
