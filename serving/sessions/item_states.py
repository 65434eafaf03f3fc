"""Writes ``item_state``: the counters and co-visits that replicas read, and the loop of a part that does.

Published counters are absolute values, so publishing them twice is harmless and the snapshot that they come
from may be a little old. Of co-visits only new visits are published, and readers add them up themselves. At
first and from time to time everything is published again, in place of what readers have, and older records
are trimmed.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, Final, TypeVar

import msgspec

from recsys.app.set_loops import SetLoops
from recsys.config.system_config import Config, CovisitConfig
from recsys.events.records import EVENTS, ITEM_STATE, ItemState, pack
from recsys.features.counters import CounterTable, Keys
from recsys.features.covisits import Covisits
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import feature_set
from recsys.log.protocol import Append, Log, LogUnavailable, newest_first
from recsys.process.log_consumer import decoded, hold_available
from recsys.process.part_process import Heartbeat, Stop
from recsys.process.part_snapshot import Saved, ShareState

_PUBLISH_EVERY_MS: Final = 100
_SAVE_EVERY_MS: Final = 5_000
_SAVE_SHARE: Final = 0.05  # most of the time that may go into snapshots, however large they are
_KEYS: Final = 1_000  # of one record
_ROWS: Final = 128  # of co-visits in one record
_REPUBLISH_AFTER: Final = 5_000  # records, then all counters are published again
_COUNTERS: Final = 2_000_000  # rows: those longest untouched go once there are twice as many
_NEWEST: Final = 100  # records among which that of a set is looked for
_LOG: Final = logging.getLogger(__name__)


class ItemStates:
    """Publishes counters of a feature set by ``name``, and co-visits of the visits that it is given."""

    def __init__(
        self, log: Log, name: str, counters: CounterTable, covisits: CovisitConfig | None
    ) -> None:
        self._log, self._name, self._counters = log, name, counters
        self.covisits, self.evicted = Covisits(covisits or CovisitConfig()), 0
        self.trims = True  # no reader needs records of another set
        # A fold that begins anew mustn't take back what readers have.
        events = range(log.partitions(EVENTS))
        self._readers = newest_offsets(log, (ITEM_STATE, 0), name, events) or [0] * len(events)
        # offsets in item_state where the newest full publication, and the one before it, begin
        self._full_offset = self._previous_full_offset = -1
        self._records = 0  # published since the newest full publication

    def publish(self, offsets: Sequence[int], changed: Sequence[int], visits_VC: Keys) -> None:
        """Appends the counters that changed, and visits; all of them at first and after many records. Nothing
        until as many events are counted as readers have. ``offsets``: of ``events``, next to count."""
        added = self._added(offsets, visits_VC)
        if self._full_offset >= 0 and self._records < _REPUBLISH_AFTER:
            self._append([*added, *states_of(self._counters, changed, offsets, self._name)])
        elif all(own >= readers for own, readers in zip(offsets, self._readers, strict=True)):
            self._publish_all(offsets)

    def report(self, beat: Heartbeat) -> None:
        beat.gauge("covisit_rows", len(self.covisits))
        beat.gauge("covisit_rows_evicted", self.evicted)

    def _publish_all(self, offsets: Sequence[int]) -> None:
        """Publishes everything, and trims to the full publication before, for slow readers."""
        begin = self._log.end(ITEM_STATE, 0)
        keys, _, _ = self._counters.export()
        states = states_of(self._counters, keys, offsets, self._name)
        for start in range(0, len(self.covisits), _ROWS):
            rows = self.covisits.export(start, start + _ROWS)
            states.append(state_of(offsets, self._name, covisits=rows))
        parts = len(states)
        self._append(
            [msgspec.structs.replace(s, part=n, parts=parts) for n, s in enumerate(states)]
        )
        self._previous_full_offset, self._full_offset = self._full_offset, begin
        self._records = 0
        if self._previous_full_offset >= 0 and self.trims:
            self._log.trim(ITEM_STATE, 0, self._previous_full_offset)

    def _added(self, offsets: Sequence[int], visits_VC: Keys) -> list[ItemState]:
        """Adds new visits up, as every reader does; returns their record, with the rows that went."""
        if not len(visits_VC):
            return []
        gone = self.covisits.add_within_limit(visits_VC)
        self.evicted += len(gone)
        visits = visits_VC.tobytes()
        return [state_of(offsets, self._name, visits=visits, gone=gone.tobytes())]

    def _append(self, states: Sequence[ItemState]) -> None:
        for state in states:
            self._log.append(ITEM_STATE, [Append(0, b"", pack(state))])
            self._records += 1


class PublishingLoop:
    """A loop that publishes, and takes snapshots, from time to time. ``topic``: that it reads; ``holder``: of
    its records. Subclasses read, publish, pack and report."""

    offsets: list[int]  # next of events to count, by partition
    places: list[int]  # next of the topic to read
    states: ItemStates | None = None  # None: another part writes item_state

    def __init__(
        self, log: Log, topic: str, holder: str, state: ShareState | None, now_ms: Callable[[], int]
    ) -> None:
        self._log, self._topic, self._holder = log, topic, holder
        self._state, self._now_ms = state, now_ms
        self._published_ms = self._saved_ms = 0
        self._save_every_ms = _SAVE_EVERY_MS

    def turn(self, limit: int = 1_000) -> int:
        """Reads one batch, publishes and saves if due; returns how many records it read."""
        moved, now_ms = self._read(limit), self._now_ms()
        if now_ms - self._published_ms >= _PUBLISH_EVERY_MS:
            self._published_ms = now_ms
            self.publish()
        if now_ms - self._saved_ms >= self._save_every_ms:
            self.save()
        return moved

    def save(self) -> None:
        """Takes a snapshot; the log then keeps everything after the snapshot before it."""
        if self._state is None:
            return
        self.publish()  # visits, or readers would miss those that the snapshot has
        began_s = time.monotonic()
        held = self._state.save(self._log.id, dict(enumerate(self.places)), self._pack)
        # A snapshot that was skipped may reach back behind the beginning of the log.
        hold_available(self._log, self._holder, self._topic, held)
        self._saved_ms = self._now_ms()
        took_ms = (time.monotonic() - began_s) * 1000
        self._save_every_ms = max(_SAVE_EVERY_MS, int(took_ms / _SAVE_SHARE))

    def end(self) -> None:
        """Releases the log and removes the snapshots; published counters go with the next trim."""
        self._log.release(self._holder, self._topic)
        if self._state is not None:
            self._state.remove()

    def publish(self) -> None:
        raise NotImplementedError

    def report(self, beat: Heartbeat, moved: int) -> None:
        raise NotImplementedError

    def _read(self, limit: int) -> int:
        raise NotImplementedError

    def _pack(self, partitions: Sequence[int]) -> bytes:
        raise NotImplementedError

    def _load(self) -> dict[int, Saved]:
        """The newest snapshots by partition."""
        saved = {} if self._state is None else self._state.load(self._log.id)
        for note in [] if self._state is None else self._state.notes:
            _LOG.warning("%s", note)
        return saved


L = TypeVar("L", bound=PublishingLoop)


class PublishingLoops(SetLoops[L]):
    """The loop of each feature set in use. While there are several, nothing is trimmed."""

    def turn(self) -> int:
        moved = super().turn()
        for loop in self.loops.values():
            if loop.states is not None:
                loop.states.trims = len(self.loops) == 1
        return moved


def run_loops(
    log: Log, config: Config, stop: Stop, topic: str, make: Callable[[str, FeatureSet], L]
) -> None:
    """Runs loops that read a topic until asked to stop, then saves, and closes the log. After an error they
    start again from their snapshots."""
    loops: PublishingLoops[L] | None = None
    try:
        while not stop.is_set(starting=loops is None):
            try:
                loops = loops or PublishingLoops(log, feature_set(config), make)
                moved = loops.turn()
            except LogUnavailable as error:
                loops = None
                stop.heartbeat.add("failed_turns")
                _LOG.warning("turn failed, restarting", extra={"error": str(error)})
                stop.wait(0.3, starting=True)
                continue
            loops.report(stop.heartbeat)
            loops.oldest.report(stop.heartbeat, moved)
            if not moved:
                log.wait(topic, 0.5)
        for loop in [] if loops is None else loops.loops.values():
            loop.save()
    finally:
        log.close()


def states_of(
    counters: CounterTable,
    keys: Keys | Sequence[int],
    offsets: Sequence[int],
    name: str,
    touched: bool = False,
) -> list[ItemState]:
    """``state_of`` counters of some keys, a record for each thousand."""
    parts = [keys[start : start + _KEYS] for start in range(0, len(keys), _KEYS)]
    return [state_of(offsets, name, counters.export(part), touched=touched) for part in parts]


def state_of(
    offsets: Sequence[int], name: str, counters: Iterable[Any] = (b"",) * 3, **others: Any
) -> ItemState:
    """A record with keys, values and times of counters."""
    keys, values, last_ms = map(bytes, counters)
    return ItemState(
        offsets=list(offsets), features=name, keys=keys, values=values, last_ms=last_ms, **others
    )


def kept_below(table: CounterTable, tables: int = 1) -> int:
    """Drops rows of one of some tables beyond their limit; returns the number dropped."""
    rows = _COUNTERS // tables
    return table.keep_newest(rows) if len(table) > 2 * rows else 0


def newest_offsets(log: Log, place: tuple[str, int], name: str, events: Sequence[int]) -> list[int]:
    """Offsets of partitions of ``events`` in a set's newest record, none beyond the log's end; empty without
    a record."""
    for _, state in decoded(islice(newest_first(log, *place), _NEWEST), ItemState):
        if state.features == name:
            pairs = zip(state.offsets, events, strict=True)
            return [min(offset, log.end(EVENTS, own)) for offset, own in pairs]
    return []
