"""Everything that one replica answers from, and how the log changes it. Pure: no clock, no I/O.

Items, item state and steps are applied between requests, never during one, so that a request sees one
version of everything, and its stamp says which.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from parameter_server.deltas import StepDelta
from recsys.blueprint import build_model
from recsys.catalogue import Catalogue
from recsys.config import Config
from recsys.counters import Counters
from recsys.events import Item
from recsys.features import FeatureSet
from recsys.model import tables_of
from recsys.records import ItemState
from recsys.vectors import content_vectors
from serving.inverted import Inverted
from serving.item_index import ItemIndex
from serving.popularity import Popularity
from serving.row_store import RowStore

Keys = NDArray[np.int64]
Rows = NDArray[np.float32]


class Replica:
    """Catalogue, item counters, rows, dense parameters and index, all of one version."""

    def __init__(self, features: FeatureSet, config: Config) -> None:
        self.features, self.config = features, config
        self.catalogue = Catalogue(features)
        self.counters = Counters(len(features.kinds), 1024)
        self.model = build_model(features, config.model)
        self.rows = {t.name: RowStore(t, config.model.seed) for t in tables_of(config.model)}
        self.index = ItemIndex(config.model.vector_dim)
        self.groups = Inverted()
        self.popularity = Popularity(features, self.catalogue)
        self.line, self.epoch, self.step = "main", 0, 0
        self.step_time_ms = 0
        self.catalogue_offset = 0
        self.item_state_offset = 0
        self._group_columns = features.group_columns()
        self._group_slots = [features.slot(f"item.{name}") for name in features.schema.groups]

    @property
    def version(self) -> tuple[str, int, int]:
        return self.line, self.epoch, self.step

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

    def apply_step(self, delta: StepDelta) -> None:
        """One whole step of the line that is served. Steps never go back within an epoch."""
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

    def load(
        self,
        tables: Mapping[str, tuple[Keys, Rows]],
        dense: Rows | None,
        *,
        line: str,
        epoch: int,
        step: int,
    ) -> None:
        """Starts from a serving snapshot: rows and dense parameters are replaced whole."""
        for table in tables_of(self.config.model):
            store = RowStore(table, self.config.model.seed)
            if table.name in tables:
                store.set(*tables[table.name])
            self.rows[table.name] = store
        if dense is not None and len(dense):
            self.model.write_dense(dense)
        self.line, self.epoch, self.step = line, epoch, step
        self._place(np.arange(len(self.catalogue)))

    def _place(self, indices: Keys) -> None:
        """Sets the vectors of items: the projection of their content plus their row."""
        if not len(indices):
            return
        keys_NI = self.catalogue.keys[indices]
        content = content_vectors(keys_NI[:, self._group_columns], self.index.dim)
        self.index.set(indices, content + self.rows["items"].lookup(keys_NI[:, 0].copy()))

    def _known(self, keys: Keys) -> Keys:
        found = (self.catalogue.index_of_key(key) for key in keys.tolist())
        return np.array([index for index in found if index is not None], np.int64)

    def _groups_of(self, index: int) -> tuple[int, ...]:
        keys = self.catalogue.keys[index].tolist()
        return tuple(k for s in self._group_slots for k in keys[s.start : s.stop] if k)
