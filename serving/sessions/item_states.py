"""Writes ``item_state``: the counters and co-visits that replicas read.

Published counters are absolute values, so publishing them twice is harmless and the snapshot that they come
from may be a little old. Co-visits are published as new visits only, and readers add them up themselves. At
first and from time to time everything is published again, in place of what readers have, and older records
are trimmed. The newest full publication stays on the log, for readers that start.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
from msgspec.structs import replace

from recsys.app.set_loops import qualified
from recsys.config.system_config import CovisitConfig
from recsys.events.records import EVENTS, ITEM_STATE, ItemState, pack
from recsys.features.counters import CounterTable, Keys
from recsys.features.covisits import Covisits
from recsys.log.protocol import Append, Log, newest_first
from recsys.process.log_consumer import decoded
from recsys.process.part_process import Heartbeat

_KEYS: Final = 1_000  # of one record
_ROWS: Final = 128  # of co-visits in one record
_REPUBLISH_AFTER: Final = 5_000  # records, then all counters are published again
_COUNTERS: Final = 2_000_000  # rows: those longest untouched go once there are twice as many
Place = tuple[Sequence[int], str]  # offsets of ``events``, and the name of the feature set


class ItemStates:
    """Publishes counters of a feature set by ``name``, and co-visits of the visits that it is given."""

    def __init__(self, log: Log, name: str, counters: CounterTable, covisits: CovisitConfig | None) -> None:
        self._log, self._name, self._counters = log, name, counters
        self.covisits, self.evicted = Covisits(covisits or CovisitConfig()), 0
        self.dropped = np.empty(0, np.int64)  # by the fold: keys that readers still have
        # A fold that begins anew mustn't take back what readers have.
        events = range(log.partitions(EVENTS))
        self._readers = newest_offsets(log, (ITEM_STATE, 0), name, events) or [0] * len(events)
        # offsets in item_state where the newest full publication, and the one before it, begin
        self._full_offset = self._previous_full_offset = -1
        self._records = 0  # published since the newest full publication

    def publish(self, offsets: Sequence[int], changed: Sequence[int], visits_VC: Keys) -> None:
        """Appends changed counters, and visits; all at first, after many records, and where (on Kafka) some
        were dropped. Where nothing changed, only how far it has counted. Nothing until as much is counted as
        readers have. ``offsets``: of ``events``."""
        added, place = self._added(offsets, visits_VC), (offsets, self._name)
        if any(own < readers for own, readers in zip(offsets, self._readers, strict=True)):
            return
        slices = (self.dropped[n : n + _KEYS] for n in range(0, len(self.dropped), _KEYS))
        self._append([state_of(place, dropped=keys.tobytes()) for keys in slices])
        self.dropped = self.dropped[:0]
        whole = self._full_offset >= max(0, self._log.begin(ITEM_STATE, 0))
        if whole and self._records < _REPUBLISH_AFTER:
            states = [*added, *states_of(self._counters, changed, place)]
            news = list(offsets) != self._readers
            self._append(states or [state_of(place)] * news)
        else:
            self._publish_all(offsets)
        self._readers = list(offsets)

    def end(self) -> None:
        """Lets retention drop what a new reader would need."""
        self._log.release(qualified(ITEM_STATE, self._name), ITEM_STATE)

    def report(self, beat: Heartbeat) -> None:
        beat.gauge("covisit_rows", len(self.covisits))
        beat.gauge("covisit_rows_evicted", self.evicted)

    def _publish_all(self, offsets: Sequence[int]) -> None:
        """Publishes everything, holds it, and trims to the full publication before, for slow readers."""
        begin = self._log.end(ITEM_STATE, 0)
        states = states_of(self._counters, self._counters.export()[0], (offsets, self._name))
        for start in range(0, len(self.covisits), _ROWS):
            rows = self.covisits.export(start, start + _ROWS)
            states.append(state_of((offsets, self._name), covisits=rows))
        states = states or [state_of((offsets, self._name))] * any(offsets)
        self._append([replace(s, part=n, parts=len(states)) for n, s in enumerate(states)])
        self._previous_full_offset, self._full_offset = self._full_offset, begin
        self._records = 0
        self._log.hold(qualified(ITEM_STATE, self._name), ITEM_STATE, 0, begin)
        if self._previous_full_offset >= 0:
            self._log.trim(ITEM_STATE, 0, self._previous_full_offset)

    def _added(self, offsets: Sequence[int], visits_VC: Keys) -> list[ItemState]:
        """Adds new visits up, as every reader does; returns their record, with the rows that went."""
        if not len(visits_VC):
            return []
        gone = self.covisits.add_within_limit(visits_VC)
        self.evicted += len(gone)
        return [state_of((offsets, self._name), visits=visits_VC.tobytes(), gone=gone.tobytes())]

    def _append(self, states: Sequence[ItemState]) -> None:
        for state in states:
            self._log.append(ITEM_STATE, [Append(0, b"", pack(state))])
            self._records += 1


def states_of(
    counters: CounterTable, keys: Keys | Sequence[int], place: Place, touched: bool = False
) -> list[ItemState]:
    """``state_of`` counters of some keys, a record for each thousand."""
    parts = [keys[start : start + _KEYS] for start in range(0, len(keys), _KEYS)]
    return [state_of(place, counters.export(part), touched=touched) for part in parts]


def state_of(place: Place, counters: Iterable[Any] = (b"",) * 3, **others: Any) -> ItemState:
    """A record with keys, values and times of counters."""
    (offsets, name), (keys, values, last_ms) = place, map(bytes, counters)
    columns: dict[str, Any] = {"keys": keys, "values": values, "last_ms": last_ms}
    return ItemState(offsets=list(offsets), features=name, **columns, **others)


def kept_below(table: CounterTable, tables: int = 1) -> Keys:
    """Drops rows of one of some tables beyond their limit; returns their keys."""
    rows = _COUNTERS // tables
    return table.keep_newest(rows) if len(table) > 2 * rows else np.empty(0, np.int64)


def newest_offsets(log: Log, place: tuple[str, int], name: str, events: Sequence[int]) -> list[int]:
    """Offsets of partitions of ``events`` in a set's newest record, none beyond the log's end; empty without
    a record."""
    for _, state in decoded(newest_first(log, *place), ItemState):
        if state.features == name:
            pairs = zip(state.offsets, events, strict=True)
            return [min(offset, log.end(EVENTS, own)) for offset, own in pairs]
    return []
