"""Adds up the counters of several workers, and publishes the sums in ``item_state``.

It has a table of each partition, as the workers append it to ``item_counts``. Sums are in the order of
partitions, and visits of one publication in that of their times, so that they don't depend on who counted.
"""

import logging
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np

from recsys.config.safety_config import BoundsConfig
from recsys.config.system_config import CovisitConfig
from recsys.events.records import ITEM_COUNTS, CovisitRows, ItemState, unpack
from recsys.features.counters import CounterTable, added_up
from recsys.features.covisits import COLUMNS, Keys
from recsys.process.log_consumer import UNREADABLE
from recsys.process.part_process import Heartbeat
from recsys.process.worker_share import Share
from serving.sessions.counter_loop import NAME, SUMS, CounterLoop
from serving.sessions.item_states import ItemStates, kept_below

# In place of an offset: counters of a partition are missing, or on their way.
_LACKING, _ARRIVING = -1, -2
_LOG: Final = logging.getLogger(__name__)


class _Snapshot(msgspec.Struct):
    """Keys, values and times of the tables and, last, the sums; offsets of ``events`` that they cover."""

    features: str
    tables: list[list[bytes]]
    offsets: list[int]
    covisits: CovisitRows


class SumLoop(CounterLoop):
    """Follows ``item_counts``. Where it has no snapshot and retention has dropped records of a partition, it
    publishes nothing until a worker has sent all counters of that one.

    Raises ValueError if the snapshot is unreadable: the topic may lack the past.
    """

    topic, part = ITEM_COUNTS, SUMS
    states: ItemStates

    def _begin(self, share: Share, bounds: BoundsConfig | None, covisits: CovisitConfig | None) -> None:
        partitions = range(self._count)
        self.tables = [self._features.counter_table(1024) for _ in partitions]
        self.sums = self._features.counter_table(1024)
        self.states = ItemStates(self._log, self._name, self.sums, covisits)
        self._changed: dict[bool, set[int]] = {False: set(), True: set()}  # whether touched
        self._visits = [np.empty((0, COLUMNS), np.int64)]
        self.places = [self._log.begin(ITEM_COUNTS, p) for p in partitions]
        self.offsets, self.unreadable = [_LACKING if begin else 0 for begin in self.places], 0
        saved = self._load()
        snapshot = msgspec.msgpack.decode(saved[0].blob, type=_Snapshot) if saved else None
        if snapshot and snapshot.features == self._features.digest:  # others count other keys
            for table, columns in zip((*self.tables, self.sums), snapshot.tables, strict=True):
                table.put(*columns)
            self.states.covisits.put(snapshot.covisits)
            self.places = [saved[p].offsets[ITEM_COUNTS][p] for p in partitions]
            self.offsets = snapshot.offsets
        if lacking := [p for p in partitions if self.offsets[p] < 0]:
            _LOG.warning(
                f"partitions {lacking} of {ITEM_COUNTS} begin at {[self.places[p] for p in lacking]}, "
                "expected 0 or a snapshot: nothing is published until all their counters come. If they "
                f"don't, stop, remove parts/{self.part} and all parts/{NAME}-p*, and start again"
            )

    def publish(self) -> None:
        changed: list[int] = []
        for touched, keys in self._changed.items():
            own: Keys = np.array(sorted(keys), np.int64)
            self.sums.set(own, *added_up(self.tables, own, touched))
            changed += own.tolist()
            keys.clear()
        self.states.dropped = np.append(self.states.dropped, kept_below(self.sums))
        visits_VC = np.concatenate(self._visits)
        self._visits = [visits_VC[:0]]
        time_ms, sign, *items = visits_VC.T
        in_order = np.lexsort((*items, -sign, time_ms))  # what is taken back was added before
        self.states.publish(self.offsets, changed, visits_VC[in_order])

    def report(self, beat: Heartbeat, moved: int) -> None:
        beat.offsets(ITEM_COUNTS, self.places)
        beat.gauge("unreadable", self.unreadable)
        beat.gauge("partitions_lacking", sum(offset < 0 for offset in self.offsets))
        self.states.report(beat)

    def _read(self, limit: int) -> int:
        moved = 0
        for partition, table in enumerate(self.tables):
            for record in self._log.read(ITEM_COUNTS, partition, self.places[partition], limit):
                try:
                    self._take(partition, table, unpack(record.value, ItemState))
                except (*UNREADABLE, ValueError):  # another shape; the archive writes dead letters
                    self.unreadable += 1
                self.places[partition] = record.offset + 1
                moved += 1
            kept_below(table, self._count)
        return moved

    def _take(self, partition: int, table: CounterTable, state: ItemState) -> None:
        if state.features == self._name:
            visits_VC = np.frombuffer(state.visits, np.int64).reshape(-1, COLUMNS)
            (offset,) = state.offsets
            keys = table.put(state.keys, state.values, state.last_ms)
            self._changed[state.touched].update(keys.tolist())
            self._visits.append(visits_VC)
            if state.whole and not state.part and self.offsets[partition] == _LACKING:
                self.offsets[partition] = _ARRIVING
            if state.part + 1 >= state.parts and self.offsets[partition] != _LACKING:
                self.offsets[partition] = offset

    def _pack(self, partitions: Sequence[int]) -> bytes:
        tables = [[c.tobytes() for c in table.export()] for table in (*self.tables, self.sums)]
        covisits = self.states.covisits.export()
        snapshot = _Snapshot(self._features.digest, tables, self.offsets, covisits)
        return msgspec.msgpack.encode(snapshot)
