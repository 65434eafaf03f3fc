"""Everything that one replica answers from, and how the log changes it. Pure: no clock, no I/O.

Items, item state and steps are applied between requests, never during one, so that a request sees one
version of everything, and its stamp says which. Another snapshot is made beside it, and then takes its place.
"""

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
from serving.inverted import Inverted
from serving.item_index import ItemIndex
from serving.popularity import Popularity
from serving.row_store import RowStore

Keys = NDArray[np.int64]
Rows = NDArray[np.float32]
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
                rows[table.name] = RowStore.filled(table, seed, *tables[table.name])
            else:
                rows[table.name] = RowStore(table, seed)
        index, total = ItemIndex(self.config.model.vector_dim), len(self.catalogue)
        vectors = np.empty((total, index.dim), np.float32)
        for start in range(0, total, _BLOCK):
            part = slice(start, min(start + _BLOCK, total))
            vectors[part] = self._vectors(np.arange(part.start, part.stop), rows["items"])
        index.set(np.arange(total), vectors)
        return Fresh(line, epoch, step, rows, dense, index, self.catalogue_offset)

    def take(self, fresh: Fresh) -> None:
        """Starts from what was prepared: rows, dense parameters and vectors are replaced whole, at once."""
        assert fresh.catalogue_offset == self.catalogue_offset, "items were applied since prepare"
        self.rows, self.index = fresh.rows, fresh.index
        if fresh.dense is not None and len(fresh.dense):
            self.model.write_dense(fresh.dense)
        self.line, self.epoch, self.step = fresh.line, fresh.epoch, fresh.step

    def _place(self, indices: Keys) -> None:
        if len(indices):
            self.index.set(indices, self._vectors(indices, self.rows["items"]))

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
        found = (self.catalogue.index_of_key(key) for key in keys.tolist())
        return np.array([index for index in found if index is not None], np.int64)

    def _groups_of(self, index: int) -> tuple[int, ...]:
        keys = self.catalogue.keys[index].tolist()
        return tuple(k for s in self._group_slots for k in keys[s.start : s.stop] if k)
