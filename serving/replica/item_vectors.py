"""The vectors of items, by one version of their rows and fields, in an index. Pure.

What a replica and a shard of retrieval have in common: the catalogue, the rows of ``items``, what a vector is
made of, and how an index of them is kept and replaced.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from parameter_server.publish.deltas import StepDelta
from recsys.config.system_config import Config, ModelConfig, TableConfig
from recsys.events.event_types import Item
from recsys.events.records import ItemState
from recsys.features.catalogue import Catalogue
from recsys.features.feature_set import FeatureSet
from recsys.model.model import Model
from recsys.model.retrieval_vectors import content_vectors, field_vectors
from serving.index.item_index import FlatIndex, ItemIndex, NoIndex
from serving.replica.int8_rows import Int8Rows
from serving.replica.row_store import RowStore

Keys = NDArray[np.int64]
Rows = NDArray[np.float32]
_QUERIES: Final = 64
_BLOCK: Final = 4096  # items whose vectors are made at once, beside a thread that answers


@dataclass(frozen=True)
class Fresh:
    """Another version, made beside the one that answers. ``catalogue_offset``: of the items it knows.
    ``model``: where it is of another size than the one that is served."""

    line: str
    epoch: int
    step: int
    rows: dict[str, RowStore]
    dense: Rows | None
    index: ItemIndex
    catalogue_offset: int
    model: Model | None = None


class ItemVectors(ABC):
    """Catalogue, rows and index of one version. Where the index is ``elsewhere``, in so many shards, vectors
    are made when they are asked for."""

    def __init__(
        self,
        features: FeatureSet,
        config: Config,
        tables: Sequence[TableConfig],
        elsewhere: int = 0,
    ) -> None:
        self.features, self.config = features, config
        self.catalogue = Catalogue(features)
        self._store = Int8Rows if config.serve.rows == "int8" else RowStore
        self._tables = tuple(tables)
        self.rows: dict[str, RowStore] = {t.name: self._store(t, config.model.seed) for t in tables}
        dim = config.model.vector_dim
        self.index: ItemIndex = NoIndex(dim, elsewhere) if elsewhere else FlatIndex(dim)
        self.building: ItemIndex | None = None  # what is to take its place, and is filled meanwhile
        self.queries: deque[Rows] = deque(maxlen=_QUERIES)  # user sides of the newest requests
        self.line, self.epoch, self.step = "main", 0, 0
        self.step_time_ms = 0
        self.catalogue_offset = 0
        self.item_state_offset = 0
        self.item_state_from = (
            0  # the first offset of ``item_state`` read; -1: some were passed over
        )
        self._group_columns = features.group_columns()

    @property
    def version(self) -> tuple[str, int, int]:
        return self.line, self.epoch, self.step

    @property
    def indexed(self) -> bool:
        """Whether there is an index here."""
        return not isinstance(self.index, NoIndex)

    def make_room(
        self, items: Sequence[Item], states: Sequence[ItemState], steps: Sequence[StepDelta]
    ) -> None:
        """Makes room for what is about to be applied, for a thread beside the one that answers: what grows is
        copied there, so that no request waits for it. Nothing may be applied meanwhile."""
        self.catalogue.reserve(len(items))
        for name, store in self.rows.items():
            store.reserve(sum(len(step.tables[name].keys) for step in steps if name in step.tables))

    @abstractmethod
    def apply_records(self, records: Sequence[tuple[Item, int]]) -> None:
        """Items that were published, changed or removed, each with the offset of ``items`` to read next."""

    @abstractmethod
    def apply_step(self, delta: StepDelta) -> bool:
        """One whole step of the line that is served. Steps never go back within an epoch. False where, by the
        delta's digest, the rows then aren't those that were published: start from a snapshot."""

    @abstractmethod
    def apply_item_state(self, state: ItemState, offset: int) -> None:
        """Item counters as they are now, for who keeps them. ``offset`` is the next to read of
        ``item_state``."""

    def prepare(
        self,
        tables: Mapping[str, tuple[Keys, Rows]],
        dense: Rows | None,
        *,
        line: str,
        epoch: int,
        step: int,
        model: ModelConfig | None = None,
    ) -> Fresh:
        """Makes all that a serving snapshot replaces, and changes nothing. For a thread beside the one that
        answers, which goes on meanwhile; nothing may be applied before ``take``. ``model``: that of the
        epoch, where it may be of another size; vectors are the same for all."""
        seed, rows = self.config.model.seed, dict[str, RowStore]()
        for table in self._tables_of(model):
            if table.name in tables:
                rows[table.name] = self._store.filled(table, seed, *self._own(*tables[table.name]))
            else:
                rows[table.name] = self._store(table, seed)
        index, total = self.index.empty(), len(self.catalogue)
        for start in range(0, total if self.indexed else 0, _BLOCK):
            its = np.arange(start, min(start + _BLOCK, total))
            index.set(its, self._vectors(its, rows["items"]), self.catalogue.alive[its])
        index.compact()
        return Fresh(line, epoch, step, rows, dense, index, self.catalogue_offset)

    def take(self, fresh: Fresh) -> None:
        """Starts from what was prepared: rows and vectors are replaced whole, at once."""
        assert fresh.catalogue_offset == self.catalogue_offset, "items were applied since prepare"
        self.rows, self.index, self.building = fresh.rows, fresh.index, None
        self.line, self.epoch, self.step = fresh.line, fresh.epoch, fresh.step

    def swap(self, index: ItemIndex) -> None:
        """Goes over to an index that was filled beside the one that answers."""
        assert len(index) == len(self.index), f"{len(index)} vectors, expected {len(self.index)}"
        self.index, self.building = index, None

    def vectors_of(self, indices: Keys) -> Rows:
        """The vectors of items as they are now (N, V), a copy."""
        if self.indexed:
            return self.index.vectors[indices]
        return self._vectors(indices, self.rows["items"])

    def _tables_of(self, model: ModelConfig | None) -> tuple[TableConfig, ...]:
        """The tables that are kept here of a model; None: of the one that is served."""
        return self._tables

    def _own(self, keys: Keys, rows: Rows) -> tuple[Keys, Rows]:
        """Those of a table's rows that are kept here."""
        return keys, rows

    def _place(self, indices: Keys) -> None:
        if not len(indices) or not self.indexed:
            return
        vectors, alive = self._vectors(indices, self.rows["items"]), self.catalogue.alive[indices]
        self.index.set(indices, vectors, alive)
        if self.building is not None:
            self.building.set(indices, vectors, alive)

    def _vectors(self, indices: Keys, rows: RowStore) -> Rows:
        """The vectors of items (N, V): the projection of their content plus their row."""
        keys_NI, numbers_NM = self.catalogue.keys[indices], self.catalogue.numbers[indices]
        return self._made_of(keys_NI, numbers_NM, rows.lookup(keys_NI[:, 0].copy()))

    def _made_of(self, keys_NI: Keys, numbers_NM: Rows, rows_NV: Rows) -> Rows:
        """Vectors (N, V) of the keys and numbers of items and their rows."""
        dim = rows_NV.shape[1]
        content = content_vectors(keys_NI[:, self._group_columns], dim)
        fields = self.features.vector_fields
        if fields:
            own = numbers_NM[:, -self.features.vector_columns :]
            content = content + field_vectors(own, fields, dim)
        out: Rows = content + rows_NV
        return out

    def _known(self, keys: Keys) -> Keys:
        found = self.catalogue.indices_of_keys(keys)
        return found[found >= 0]
