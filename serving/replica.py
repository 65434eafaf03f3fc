"""Everything that one replica answers from, and how the log changes it. Pure: no clock, no I/O.

Items, item state and steps are applied between requests, never during one, so that a request sees one
version of everything, and its stamp says which. Another snapshot is made beside it, and then takes its place.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from parameter_server.deltas import StepDelta
from parameter_server.rounding import round_dense
from recsys.blueprint import build_model
from recsys.catalogue import Catalogue
from recsys.config import Config
from recsys.counters import Counters
from recsys.events import Item
from recsys.features import FeatureSet
from recsys.model import Model, tables_of
from recsys.records import ItemState
from recsys.vectors import content_vectors, field_vectors
from serving.int8_rows import Int8Rows
from serving.inverted import Inverted
from serving.item_index import FlatIndex, ItemIndex
from serving.popularity import Popularity
from serving.row_store import RowStore

Keys = NDArray[np.int64]
Rows = NDArray[np.float32]
_QUERIES: Final = 64
_BLOCK: Final = 4096  # items whose vectors are made at once, beside a thread that answers


@dataclass(frozen=True)
class Fresh:
    """Another version, made beside the one that answers. ``catalogue_offset``: of the items it knows."""

    line: str
    epoch: int
    step: int
    rows: dict[str, RowStore]
    dense: Rows | None
    index: ItemIndex
    catalogue_offset: int


def published_model(features: FeatureSet, config: Config) -> Model:
    """The model as a line begins, its dense parameters rounded as they are published: what a replica has
    before the first snapshot is what it reads from that."""
    model = build_model(features, config.model)
    _, dense = round_dense(model.read_dense(), config.parameter_server.delta_format)
    model.write_dense(dense)
    return model


class Replica:
    """Catalogue, item counters, rows, dense parameters and index, all of one version."""

    def __init__(self, features: FeatureSet, config: Config) -> None:
        self.features, self.config = features, config
        self.catalogue = Catalogue(features)
        self.counters = Counters(len(features.kinds), 1024)
        self.model = published_model(features, config)
        self._store = Int8Rows if config.serve.rows == "int8" else RowStore
        seed, tables = config.model.seed, tables_of(config.model)
        self.rows: dict[str, RowStore] = {t.name: self._store(t, seed) for t in tables}
        self.index: ItemIndex = FlatIndex(config.model.vector_dim)
        self.building: ItemIndex | None = None  # what is to take its place, and is filled meanwhile
        self.queries: deque[Rows] = deque(maxlen=_QUERIES)  # user sides of the newest requests
        self.groups = Inverted()
        self.popularity = Popularity(features, self.catalogue)
        self.line, self.epoch, self.step = "main", 0, 0
        self.step_time_ms = 0
        self.catalogue_offset = 0
        self.item_state_offset = 0
        self.item_state_from = (
            0  # the first offset of ``item_state`` read; -1: some were passed over
        )
        self._group_columns = features.group_columns()
        self._group_slots = [features.slot(f"item.{name}") for name in features.schema.groups]

    @property
    def version(self) -> tuple[str, int, int]:
        return self.line, self.epoch, self.step

    def make_room(
        self, items: Sequence[Item], states: Sequence[ItemState], steps: Sequence[StepDelta]
    ) -> None:
        """Makes room for what is about to be applied, for a thread beside the one that answers: what grows is
        copied there, so that no request waits for it. Nothing may be applied meanwhile."""
        self.catalogue.reserve(len(items))
        self.popularity.reserve(len(items))
        self.counters.reserve(sum(len(state.keys) // 8 for state in states))
        for name, store in self.rows.items():
            store.reserve(sum(len(step.tables[name].keys) for step in steps if name in step.tables))

    def apply_item(self, item: Item, offset: int) -> None:
        """An item was published, changed or removed. ``offset`` is the next to read of ``items``."""
        self.apply_items([item], offset)

    def apply_items(self, items: Sequence[Item], offset: int) -> None:
        """Several at once, in order: their vectors are made together, in an eighth of the time."""
        moved = [self._enter(item) for item in items]
        self._place(np.unique(np.array(moved, np.int64)))
        self.catalogue_offset = offset

    def _enter(self, item: Item) -> int:
        before = self.catalogue.index_of(item.item_id)
        old = self._groups_of(before) if before is not None else ()
        index = self.catalogue.apply(item)
        if before is None:
            self.popularity.enter(index, self.counters)
        self.groups.move(index, old, self._groups_of(index) if not item.removed else ())
        return index

    def apply_item_state(self, state: ItemState, offset: int) -> None:
        """Item counters as they are now. ``offset`` is the next to read of ``item_state``."""
        keys = np.frombuffer(state.keys, np.int64)
        values = np.frombuffer(state.values, np.float32).reshape(-1, self.counters.columns)
        last_ms = np.frombuffer(state.last_ms, np.int64)
        self.counters.set(keys, values, last_ms)
        self.popularity.update(keys, values, last_ms)
        self.item_state_offset = offset

    def apply_step(self, delta: StepDelta) -> bool:
        """One whole step of the line that is served. Steps never go back within an epoch. False where, by the
        delta's digest, the rows then aren't those that were published: start from a snapshot."""
        if delta.step <= self.step:
            raise ValueError(f"step {delta.step} came after {self.step}; a replica never goes back")
        for name, changed in delta.tables.items():
            self.rows[name].set(changed.keys, changed.values)
            if len(changed.removed):
                self.rows[name].remove(changed.removed)
        if delta.dense is not None:
            self.model.write_dense(delta.dense)
        if "items" in delta.tables:
            moved = delta.tables["items"]
            self._place(self._known(np.concatenate([moved.keys, moved.removed])))
        self.step, self.step_time_ms = delta.step, delta.time_ms
        return delta.digest is None or delta.digest == self.digest

    @property
    def digest(self) -> int:
        """Of all rows, modulo 2⁶⁴."""
        return sum(store.digest for store in self.rows.values()) % 2**64

    def prepare(
        self,
        tables: Mapping[str, tuple[Keys, Rows]],
        dense: Rows | None,
        *,
        line: str,
        epoch: int,
        step: int,
    ) -> Fresh:
        """Makes all that a serving snapshot replaces, and changes nothing. For a thread beside the one that
        answers, which goes on meanwhile; nothing may be applied before ``take``."""
        seed, rows = self.config.model.seed, dict[str, RowStore]()
        for table in tables_of(self.config.model):
            if table.name in tables:
                rows[table.name] = self._store.filled(table, seed, *tables[table.name])
            else:
                rows[table.name] = self._store(table, seed)
        index, total = self.index.empty(), len(self.catalogue)
        for start in range(0, total, _BLOCK):
            its = np.arange(start, min(start + _BLOCK, total))
            index.set(its, self._vectors(its, rows["items"]), self.catalogue.alive[its])
        return Fresh(line, epoch, step, rows, dense, index, self.catalogue_offset)

    def take(self, fresh: Fresh) -> None:
        """Starts from what was prepared: rows, dense parameters and vectors are replaced whole, at once."""
        assert fresh.catalogue_offset == self.catalogue_offset, "items were applied since prepare"
        self.rows, self.index, self.building = fresh.rows, fresh.index, None
        if fresh.dense is not None and len(fresh.dense):
            self.model.write_dense(fresh.dense)
        self.line, self.epoch, self.step = fresh.line, fresh.epoch, fresh.step

    def swap(self, index: ItemIndex) -> None:
        """Goes over to an index that was filled beside the one that answers."""
        assert len(index) == len(self.index), f"{len(index)} vectors, expected {len(self.index)}"
        self.index, self.building = index, None

    def _place(self, indices: Keys) -> None:
        if not len(indices):
            return
        vectors, alive = self._vectors(indices, self.rows["items"]), self.catalogue.alive[indices]
        self.index.set(indices, vectors, alive)
        if self.building is not None:
            self.building.set(indices, vectors, alive)

    def _vectors(self, indices: Keys, rows: RowStore) -> Rows:
        """The vectors of items (N, V): the projection of their content plus their row."""
        keys_NI = self.catalogue.keys[indices]
        content = content_vectors(keys_NI[:, self._group_columns], self.index.dim)
        fields = self.features.vector_fields
        if fields:
            own = self.catalogue.numbers[indices, -self.features.vector_columns :]
            content = content + field_vectors(own, fields, self.index.dim)
        out: Rows = content + rows.lookup(keys_NI[:, 0].copy())
        return out

    def _known(self, keys: Keys) -> Keys:
        found = self.catalogue.indices_of_keys(keys)
        return found[found >= 0]

    def _groups_of(self, index: int) -> tuple[int, ...]:
        keys = self.catalogue.keys[index].tolist()
        return tuple(k for s in self._group_slots for k in keys[s.start : s.stop] if k)
