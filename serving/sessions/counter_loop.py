"""Part that counts all viewers' events by item, and publishes counters and visits in ``item_state``.

Published counters are absolute values, so publishing them twice is harmless and the fold's own snapshot may
be a little old. Of co-visits only new visits are published, and readers add them up themselves. At first and
from time to time everything is published again, in place of what readers have, and older records are trimmed.
"""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from recsys.app.set_loops import SetLoops
from recsys.clock import wall_ms
from recsys.config.safety_config import BoundsConfig
from recsys.config.system_config import Config, CovisitConfig
from recsys.events.event_types import Engagement, Impression, User, Verdict
from recsys.events.records import EVENTS, ITEM_STATE, CovisitRows, ItemState, pack
from recsys.features.covisits import Covisits
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import feature_set
from recsys.features.item_counters import ItemCounters
from recsys.log.protocol import Append, Log, LogUnavailable
from recsys.process.log_consumer import hold_available
from recsys.process.open_log import open_log
from recsys.process.part_process import Stop
from recsys.process.part_snapshot import PartState
from serving.sessions.event_reader import EventReader

NAME: Final = "counters"
_PUBLISH_EVERY_MS: Final = 100
_SAVE_EVERY_MS: Final = 5_000
_SAVE_SHARE: Final = 0.05  # most of the time that may go into snapshots, however large they are
_KEYS: Final = 1_000  # of one record
_ROWS: Final = 128  # of co-visits in one record
_REPUBLISH_AFTER: Final = 5_000  # records, then all counters are published again
_COUNTERS: Final = 2_000_000  # rows: those longest untouched go once there are twice as many
_NAMED: Final = 20  # users in quarantine whom the status names
_LOG: Final = logging.getLogger(__name__)


class _Snapshot(msgspec.Struct):
    """Snapshot of the counters, with remembered requests, quarantined users and bounds of influence."""

    features: str
    keys: bytes
    values: bytes
    last_ms: bytes
    requests: list[tuple[str, int]]
    segments: list[tuple[str, int]] = []
    quarantined: list[str] = []
    influences: dict[int, bytes] = {}
    covisits: CovisitRows = CovisitRows()
    visitors: list[tuple[int, bytes]] = []
    sources: list[tuple[str, dict[int, list[str]]]] = []
    operators: bytes = b""


class CounterLoop:
    """Folds ``events`` into item counters. ``state``: keeps its snapshots; None: it takes none. ``name``: of
    the feature set, if it isn't the first (recsys/app/set_loops.py).

    Raises LogLost if the snapshot belongs to another log. An unreadable snapshot is skipped, in favour of the
    one before it or of what the log still holds.
    """

    def __init__(
        self,
        log: Log,
        features: FeatureSet,
        state: PartState | None = None,
        now_ms: Callable[[], int] = wall_ms,
        bounds: BoundsConfig | None = None,
        covisits: CovisitConfig | None = None,
        name: str = "",
    ) -> None:
        self._name, self._holder = name, part_name(name)
        self.trims = True  # no reader needs records of another set
        self._log, self._features, self._now_ms = log, features, now_ms
        self._state = state
        self.events = EventReader(log, features)
        covisits = covisits or CovisitConfig()
        self.fold = ItemCounters(features, bounds, log.partitions(EVENTS), covisits)
        self.covisits, self.evicted, self.rows_evicted = Covisits(covisits), 0, 0
        self._published_ms = self._saved_ms = 0
        self._save_every_ms = _SAVE_EVERY_MS
        # offsets in item_state where the newest full publication, and the one before it, begin
        self._full_offset = self._previous_full_offset = -1
        self._records = 0  # published since the newest full publication
        self.events.seek(self._restore())

    @property
    def offsets(self) -> list[int]:
        return self.events.offsets

    def turn(self, limit: int = 1_000) -> int:
        """Folds one batch, publishes and saves if due; returns how many records it consumed."""
        before = sum(self.events.offsets)
        for partition, offset, event in self.events.read(limit):
            if isinstance(event, Impression):
                self.fold.impression(event, self.events.shown_keys(event))
            elif isinstance(event, Engagement):
                self.fold.engagement(event, self.events.keys_of(event.item_id), partition)
            elif isinstance(event, User):
                self.fold.user(event, partition)
            elif isinstance(event, Verdict):
                past = self.events.of_user(event.user_id, partition, offset)
                self.fold.verdict(event, past, self.events.keys_of, partition)
        if len(self.fold.counters) > 2 * _COUNTERS:
            self.rows_evicted += self.fold.counters.keep_newest(_COUNTERS)
        now_ms = self._now_ms()
        if now_ms - self._published_ms >= _PUBLISH_EVERY_MS:
            self._published_ms = now_ms
            self.publish()
        if now_ms - self._saved_ms >= self._save_every_ms:
            self.save()
        return sum(self.events.offsets) - before

    def publish(self) -> None:
        """Appends the counters that changed; all of them at first and after many records."""
        visits = self._add_visits()
        if self._full_offset < 0 or self._records >= _REPUBLISH_AFTER:
            self._publish_all()
        else:
            self._append([*visits, *self._states(self.fold.take_changed())])

    def save(self) -> None:
        """Takes a snapshot; the log then keeps everything after the snapshot before it."""
        if self._state is None:
            return
        self.publish()  # visits, or readers would miss those that the snapshot has
        began_s = time.monotonic()
        keys, values, last_ms = self.fold.counters.export()
        arrays = (keys.tobytes(), values.tobytes(), last_ms.tobytes())
        snapshot = _Snapshot(
            self._features.digest,
            *arrays,
            self.fold.contexts_by_request(),
            self.fold.segments_by_request(),
            sorted(self.fold.quarantined),
            {partition: bounds.pack() for partition, bounds in self.fold.influences.items()},
            self.covisits.export(),
            list(self.fold.visits.users.items()),
            list(self.fold.credits.requests.items()),
            self.fold.operators.pack(),
        )
        offsets = {EVENTS: dict(enumerate(self.events.offsets))}
        held = self._state.save(self._log.id, offsets, msgspec.msgpack.encode(snapshot))
        # A snapshot that was skipped may reach back behind the beginning of the log.
        hold_available(self._log, self._holder, EVENTS, held[EVENTS])
        self._saved_ms = self._now_ms()
        took_ms = (time.monotonic() - began_s) * 1000
        self._save_every_ms = max(_SAVE_EVERY_MS, int(took_ms / _SAVE_SHARE))

    def end(self) -> None:
        """Releases the log and removes the snapshots; published counters go with the next trim."""
        self._log.release(self._holder, EVENTS)
        if self._state is not None:
            self._state.remove()

    def _publish_all(self) -> None:
        """Publishes everything, and trims to the full publication before, for slow readers."""
        begin = self._log.end(ITEM_STATE, 0)
        self.fold.take_changed()
        keys, _, _ = self.fold.counters.export()
        states = self._states(keys.tolist())
        for start in range(0, len(self.covisits), _ROWS):
            states.append(self._state_of(covisits=self.covisits.export(start, start + _ROWS)))
        parts = len(states)
        numbered = enumerate(states)
        self._append([msgspec.structs.replace(s, part=n, parts=parts) for n, s in numbered])
        self._previous_full_offset, self._full_offset = self._full_offset, begin
        self._records = 0
        if self._previous_full_offset >= 0 and self.trims:
            self._log.trim(ITEM_STATE, 0, self._previous_full_offset)

    def _add_visits(self) -> list[ItemState]:
        """Adds new visits up, as every reader does; returns their record, with the rows that went."""
        visits = self.fold.visits.take()
        if not len(visits):
            return []
        gone = self.covisits.add_within_limit(visits)
        self.evicted += len(gone)
        return [self._state_of(visits=visits.tobytes(), gone=gone.tobytes())]

    def _states(self, keys: Sequence[int]) -> list[ItemState]:
        """Counters of some keys, a record for each thousand."""
        parts = [keys[start : start + _KEYS] for start in range(0, len(keys), _KEYS)]
        return [self._state_of(self.fold.counters.export(part)) for part in parts]

    def _state_of(self, counters: Sequence[Any] = (b"",) * 3, **visits: Any) -> ItemState:
        names = ("keys", "values", "last_ms")
        visits |= {name: bytes(column) for name, column in zip(names, counters, strict=True)}
        return ItemState(offsets=list(self.events.offsets), features=self._name, **visits)

    def _append(self, states: Sequence[ItemState]) -> None:
        for state in states:
            self._log.append(ITEM_STATE, [Append(0, b"", pack(state))])
            self._records += 1

    def _restore(self) -> list[int] | None:
        """Loads the snapshot and returns its offsets; None without a usable one."""
        if self._state is None:
            return None
        try:
            saved = self._state.load(self._log.id)
            snapshot = saved and msgspec.msgpack.decode(saved.blob, type=_Snapshot)
        except (ValueError, msgspec.MsgspecError) as error:
            _LOG.warning("the counters' snapshot can't be read, counting from the log: %s", error)
            return None
        if self._state.note:
            _LOG.warning("%s", self._state.note)
        if not saved or not snapshot or snapshot.features != self._features.digest:
            return None  # other features count other keys: starts anew
        keys = np.frombuffer(snapshot.keys, np.int64)
        values = np.frombuffer(snapshot.values, np.float32).reshape(-1, self.fold.counters.columns)
        self.fold.counters.set(keys, values, np.frombuffer(snapshot.last_ms, np.int64))
        self.fold.restore_contexts(snapshot.requests, snapshot.segments)
        self.fold.quarantined.update(snapshot.quarantined)
        self.fold.influences.restore(snapshot.influences.items())
        self.covisits.put(snapshot.covisits)
        self.fold.visits.users.update(snapshot.visitors)
        self.fold.credits.requests.update(snapshot.sources)
        self.fold.operators.restore(snapshot.operators)
        return [saved.offsets[EVENTS][p] for p in range(len(saved.offsets[EVENTS]))]


def quarantined_users(folder: str, log_id: str) -> set[str]:
    """Users in quarantine by the newest snapshots in a state folder; none without one."""
    users: set[str] = set()
    for part in Path(folder).glob(f"parts/{NAME}*"):
        if saved := PartState(folder, part.name).load(log_id):
            users |= set(msgspec.msgpack.decode(saved.blob, type=_Snapshot).quarantined)
    return users


def part_name(name: str) -> str:
    """Name of the snapshots of a feature set's counters."""
    return f"{NAME}@{name}" if name else NAME


class CounterLoops(SetLoops[CounterLoop]):
    """Counters of each feature set in use. While there are several, nothing is trimmed."""

    def turn(self) -> int:
        moved = super().turn()
        for loop in self.loops.values():
            loop.trims = len(self.loops) == 1
        return moved


def run(config: Config, stop: Stop, whole: Callable[[Log], Log] = lambda log: log) -> None:
    """Runs the part until it is asked to stop, then saves. After an error it restarts from its snapshot.
    ``whole``: adds to the log what it has lost, for sets that are new."""
    log = whole(open_log(config))
    loops: CounterLoops | None = None

    def make(name: str, features: FeatureSet) -> CounterLoop:
        state = PartState(config.state, part_name(name))
        bounds, covisits = config.bounds, config.covisits
        return CounterLoop(log, features, state, bounds=bounds, covisits=covisits, name=name)

    try:
        while not stop.is_set(starting=loops is None):
            try:
                loops = loops or CounterLoops(log, feature_set(config), make)
                moved = loops.turn()
            except LogUnavailable as error:
                loops = None
                stop.heartbeat.add("failed_turns")
                _LOG.warning("turn failed, restarting", extra={"error": str(error)})
                stop.wait(0.3, starting=True)
                continue
            loops.report(stop.heartbeat)
            loop = loops.oldest
            stop.heartbeat.add("events", moved)
            stop.heartbeat.offsets(EVENTS, loop.events.offsets)
            stop.heartbeat.gauge("counters", len(loop.fold.counters))
            stop.heartbeat.gauge("counters_evicted", loop.rows_evicted)
            stop.heartbeat.gauge("contacts", len(loop.fold.operators))
            for name, evicted in loop.fold.operators.evicted.items():
                stop.heartbeat.gauge(f"{name}_evicted", evicted)
            stop.heartbeat.gauge("quarantined", len(loop.fold.quarantined))
            stop.heartbeat.names("quarantined", sorted(loop.fold.quarantined)[:_NAMED])
            stop.heartbeat.gauge("covisit_rows", len(loop.covisits))
            stop.heartbeat.gauge("covisit_rows_evicted", loop.evicted)
            stop.heartbeat.gauge("covisit_users_forgotten", loop.fold.visits.forgotten)
            if not moved:
                log.wait(EVENTS, 0.5)
        for loop in [] if loops is None else loops.loops.values():
            loop.publish()
            loop.save()
    finally:
        log.close()
