"""Part that adds up the counters of several workers, and publishes the sums in ``item_state``.

It has a table of each partition, as the workers append it to ``item_counts``. Sums are in the order of
partitions, and visits of one publication in that of their times, so that they don't depend on who counted.
"""

from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import numpy as np

from recsys.clock import wall_ms
from recsys.config.system_config import Config, CovisitConfig
from recsys.events.records import EVENTS, ITEM_COUNTS, CovisitRows, ItemState, unpack
from recsys.features.counters import CounterTable, added_up
from recsys.features.covisits import COLUMNS, Keys
from recsys.features.feature_set import FeatureSet
from recsys.log.protocol import Log
from recsys.process.open_log import open_log
from recsys.process.part_process import Heartbeat, Stop
from recsys.process.part_snapshot import PartState, ShareState
from recsys.process.worker_share import WHOLE, leased
from serving.sessions.item_states import ItemStates, PublishingLoop, kept_below, run_loops

NAME: Final = "item-sums"


class _Snapshot(msgspec.Struct):
    """Keys, values and times of the tables and, last, the sums; offsets of ``events`` that they cover."""

    features: str
    tables: list[list[bytes]]
    offsets: list[int]
    covisits: CovisitRows


class SumLoop(PublishingLoop):
    """Follows ``item_counts``; arguments as of CounterLoop. Raises LogLost if the snapshot belongs to another
    log, ValueError if it is unreadable."""

    states: ItemStates

    def __init__(
        self,
        log: Log,
        features: FeatureSet,
        state: PartState | None = None,
        now_ms: Callable[[], int] = wall_ms,
        covisits: CovisitConfig | None = None,
        name: str = "",
    ) -> None:
        count = log.partitions(EVENTS)
        shared = None if state is None else ShareState(state, ITEM_COUNTS, count, WHOLE)
        super().__init__(log, ITEM_COUNTS, part_name(name), shared, now_ms)
        self._name, self._features = name, features
        self.offsets, self.places = [0] * count, [log.begin(ITEM_COUNTS, p) for p in range(count)]
        self.tables = [features.counter_table(1024) for _ in range(count)]
        self.sums = features.counter_table(1024)
        self.states = ItemStates(log, name, self.sums, covisits)
        self._changed: dict[bool, set[int]] = {False: set(), True: set()}  # whether touched
        self._visits = [np.empty((0, COLUMNS), np.int64)]
        self._restore()

    def publish(self) -> None:
        changed: list[int] = []
        for touched, keys in self._changed.items():
            own: Keys = np.array(sorted(keys), np.int64)
            self.sums.set(own, *added_up(self.tables, own, touched))
            changed += own.tolist()
            keys.clear()
        kept_below(self.sums)
        visits_VC = np.concatenate(self._visits)
        self._visits = [visits_VC[:0]]
        time_ms, sign, *items = visits_VC.T
        in_order = np.lexsort((*items, -sign, time_ms))  # what is taken back was added before
        self.states.publish(self.offsets, changed, visits_VC[in_order])

    def report(self, beat: Heartbeat, moved: int) -> None:
        beat.offsets(ITEM_COUNTS, self.places)
        self.states.report(beat)

    def _read(self, limit: int) -> int:
        moved = 0
        for partition, table in enumerate(self.tables):
            for record in self._log.read(ITEM_COUNTS, partition, self.places[partition], limit):
                self._take(partition, table, unpack(record.value, ItemState))
                self.places[partition] = record.offset + 1
                moved += 1
            kept_below(table, len(self.tables))
        return moved

    def _take(self, partition: int, table: CounterTable, state: ItemState) -> None:
        if state.features != self._name:
            return
        keys = table.put(state.keys, state.values, state.last_ms)
        self._changed[state.touched].update(keys.tolist())
        self._visits.append(np.frombuffer(state.visits, np.int64).reshape(-1, COLUMNS))
        self.offsets[partition] = state.offsets[0]

    def _pack(self, partitions: Sequence[int]) -> bytes:
        tables = [[c.tobytes() for c in table.export()] for table in (*self.tables, self.sums)]
        covisits = self.states.covisits.export()
        return msgspec.msgpack.encode(
            _Snapshot(self._features.digest, tables, self.offsets, covisits)
        )

    def _restore(self) -> None:
        if not (saved := self._load()):
            return
        snapshot = msgspec.msgpack.decode(saved[0].blob, type=_Snapshot)
        if snapshot.features != self._features.digest:
            return  # other features count other keys: starts anew, as the workers do
        for table, columns in zip((*self.tables, self.sums), snapshot.tables, strict=True):
            table.put(*columns)
        self.states.covisits.put(snapshot.covisits)
        self.offsets = snapshot.offsets
        self.places = list(saved[0].offsets[ITEM_COUNTS].values())


def part_name(name: str) -> str:
    """Name of the snapshots of a feature set's sums."""
    return f"{NAME}@{name}" if name else NAME


def run(config: Config, stop: Stop) -> None:
    """Runs the part until it is asked to stop."""
    log = open_log(config)

    def make(name: str, features: FeatureSet) -> SumLoop:
        state = PartState(config.state, part_name(name))
        return SumLoop(log, features, state, covisits=config.covisits, name=name)

    with leased(config.state, NAME, [0]):
        run_loops(log, config, stop, ITEM_COUNTS, make)
