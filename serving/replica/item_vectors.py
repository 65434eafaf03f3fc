"""Item vectors in an index, by one version of their rows and fields. Pure.

Common part of a replica and a retrieval shard: the catalogue, the rows of ``items``, the computation of
vectors, and how an index of them is maintained and replaced.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parameter_server.publish.deltas import StepDelta
from parameter_server.storage.mapped_rows import MappedRows
from recsys.config.system_config import Config, ModelConfig, TableConfig
from recsys.events.event_types import Item
from recsys.features.catalogue import Catalogue
from recsys.features.feature_set import FeatureSet
from recsys.model.model import Model
from recsys.model.retrieval_vectors import content_vectors, field_vectors
from serving.index.item_index import FlatIndex, ItemIndex, NoIndex
from serving.replica.row_store import RowStore

Keys = NDArray[np.int64]
Rows = NDArray[np.float32]
_QUERIES: Final = 64
_BLOCK: Final = 4096  # items whose vectors are computed at once, beside a thread that answers


class ModelVersion(NamedTuple):
    """Version of the weights."""

    line: str
    epoch: int
    step: int


@dataclass(frozen=True)
class PreparedVersion:
    """Another version, built beside the one that answers. ``catalogue_offset``: of its items. ``model``: set
    where its size or its features differ from the served model's."""

    version: ModelVersion
    rows: dict[str, RowStore]
    dense: Rows | None
    index: ItemIndex
    catalogue_offset: int
    model: Model | None = None


class ItemVectors(ABC):
    """Catalogue, rows and index of one version; with ``elsewhere`` shards, vectors on demand instead."""

    _digested = True  # whether rows are compared with digests

    def __init__(
        self, features: FeatureSet, config: Config, tables: Sequence[TableConfig], elsewhere: int = 0
    ) -> None:
        self.features, self.config = features, config
        self.catalogue = Catalogue(features)
        self._tables = tuple(tables)
        self.rows: dict[str, RowStore] = {t.name: RowStore(t, config.model.seed) for t in tables}
        dim = config.model.vector_dim
        self.index: ItemIndex = NoIndex(dim, elsewhere) if elsewhere else FlatIndex(dim)
        self.building: ItemIndex | None = None  # the next index, being filled
        self.queries: deque[Rows] = deque(maxlen=_QUERIES)  # user vectors of the newest requests
        self.line, self.epoch, self.step = "main", 0, 0
        self.step_time_ms = 0
        self.catalogue_offset = 0
        self.item_state_offset = 0
        self.item_state_from = 0  # first offset read of ``item_state``; -1: some were skipped
        self._group_columns = features.group_columns()

    @property
    def version(self) -> ModelVersion:
        return ModelVersion(self.line, self.epoch, self.step)

    @property
    def indexed(self) -> bool:
        """Whether the index is in this process."""
        return not isinstance(self.index, NoIndex)

    def make_room_for_items(self, count: int) -> None:
        """Makes room for records about to be applied, in a thread beside the one that answers: arrays that
        grow are copied here, so that no request waits. Nothing may be applied meanwhile."""
        self.catalogue.reserve(count)

    def make_room_for_steps(self, steps: Sequence[StepDelta]) -> None:
        """As ``make_room_for_items``; also reads the rows that change from their files."""
        for name, store in self.rows.items():
            changes = [step.tables[name] for step in steps if name in step.tables]
            store.reserve(sum(len(change.keys) + len(change.removed) for change in changes))
            for change in changes:
                store.lookup(change.keys)

    @abstractmethod
    def apply_records(self, records: Sequence[tuple[Item, int]]) -> None:
        """Applies published, changed or removed items, each with the offset of ``items`` to read next."""

    @abstractmethod
    def apply_step(self, delta: StepDelta) -> bool:
        """Applies one whole step of the served line. Steps never go back within an epoch. Returns False where
        the rows then differ from the delta's digest: start from a snapshot."""

    def prepare(
        self, tables: Mapping[str, MappedRows | tuple[Keys, Rows]], dense: Rows | None,
        version: ModelVersion, model: ModelConfig | None = None, reads: FeatureSet | None = None,
    ) -> PreparedVersion:  # fmt: skip
        """Builds everything that a serving snapshot replaces, without side effects, in a thread beside the
        one that answers. Nothing may be applied before ``install``. ``tables``: rows by name, mapped or in
        memory. ``model``: the epoch's model, whose size may differ; all have vectors of the same size.
        ``reads``: its features, if not those logged."""
        seed, rows = self.config.model.seed, dict[str, RowStore]()
        for table in self._tables_of(model):
            base = tables.get(table.name, MappedRows())
            if isinstance(base, MappedRows):
                rows[table.name] = RowStore.over(table, seed, base, self._digested)
            else:
                rows[table.name] = RowStore.filled(table, seed, *self._own(*base))
        index, total = self.index.empty(), len(self.catalogue)
        for start in range(0, total if self.indexed else 0, _BLOCK):
            block = np.arange(start, min(start + _BLOCK, total))
            index.set(block, self._vectors(block, rows["items"]), self.catalogue.alive[block])
        resized = self._other_model(model, reads)
        return PreparedVersion(version, rows, dense, index, self.catalogue_offset, resized)

    def install(self, prepared: PreparedVersion) -> None:
        """Starts from a prepared version: replaces rows and vectors whole, at once."""
        same_items = prepared.catalogue_offset == self.catalogue_offset
        assert same_items, "items were applied since prepare"
        self.rows, self.index, self.building = prepared.rows, prepared.index, None
        self.line, self.epoch, self.step = prepared.version

    def rebased(self, tables: Mapping[str, MappedRows]) -> dict[str, RowStore]:
        """The rows over a newer snapshot, to be assigned to ``rows``, built beside the thread that answers.
        Nothing may be applied meanwhile."""
        return {name: store.rebased(tables.get(name, MappedRows())) for name, store in self.rows.items()}

    def swap(self, index: ItemIndex) -> None:
        """Switches to an index that was filled beside the one that answers."""
        assert len(index) == len(self.index), f"{len(index)} vectors, expected {len(self.index)}"
        self.index, self.building = index, None

    def vectors_of(self, indices: Keys) -> Rows:
        """Current vectors of items (N, V), a copy."""
        if self.indexed:
            return self.index.vectors[indices]
        return self._vectors(indices, self.rows["items"])

    def _tables_of(self, model: ModelConfig | None) -> tuple[TableConfig, ...]:
        """The tables stored here of a model; None: of the served one."""
        return self._tables

    def _other_model(self, model: ModelConfig | None, reads: FeatureSet | None) -> Model | None:
        """A model of this configuration, where it differs from the served one."""
        return None

    def _own(self, keys: Keys, rows: Rows) -> tuple[Keys, Rows]:
        """The rows of a table that are stored here."""
        return keys, rows

    def _place(self, indices: Keys) -> None:
        if not len(indices) or not self.indexed:
            return
        vectors, alive = self._vectors(indices, self.rows["items"]), self.catalogue.alive[indices]
        self.index.set(indices, vectors, alive)
        if self.building is not None:
            self.building.set(indices, vectors, alive)

    def _vectors(self, indices: Keys, rows: RowStore) -> Rows:
        """Vectors of items (N, V): the projection of their content plus their row."""
        keys_NI, numbers_NM = self.catalogue.keys[indices], self.catalogue.numbers[indices]
        return self._made_of(keys_NI, numbers_NM, rows.lookup(keys_NI[:, 0].copy()))

    def _made_of(self, keys_NI: Keys, numbers_NM: Rows, rows_NV: Rows) -> Rows:
        """Vectors (N, V) from keys, numbers and rows of items."""
        dim = rows_NV.shape[1]
        content = content_vectors(keys_NI[:, self._group_columns], dim)
        fields = self.features.vector_fields
        if fields:
            own = numbers_NM[:, -self.features.vector_columns :]
            content = content + field_vectors(own, fields, dim)
        out: Rows = content + rows_NV
        return out

    def _indices_of(self, keys: Keys) -> Keys:
        """Catalogue indices of the keys that are known items."""
        indices = self.catalogue.indices_of_keys(keys)
        return indices[indices >= 0]
