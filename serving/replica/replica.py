"""State that one replica answers from, and how the log changes it. Pure: no clock, no I/O.

Items, item state and steps are applied between requests, never during one, so that a request sees one version
of everything, and its stamp names it. Another snapshot is prepared beside it, and then installed.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from experiments.assignment.policy import Policies
from parameter_server.publish.deltas import StepDelta
from parameter_server.publish.rounding import round_dense
from recsys.arrays.growable import grown
from recsys.config.system_config import Config, ModelConfig, TableConfig, tables_of
from recsys.events.event_types import Item
from recsys.events.field_schema import CATEGORICAL, values_of
from recsys.events.hashing import key_of
from recsys.events.records import ItemState
from recsys.features.covisits import COLUMNS, Covisits
from recsys.features.feature_set import FeatureSet
from recsys.features.request_features import RequestFeatures
from recsys.model.model import Model, build_model
from recsys.model.wider_set import Narrowing
from serving.replica.group_index import GroupIndex
from serving.replica.item_vectors import ItemVectors, PreparedVersion
from serving.replica.popularity import Popularity
from serving.replica.value_index import ValueIndex

Keys = NDArray[np.int64]
Rows = NDArray[np.float32]


def published_model(features: FeatureSet, config: Config) -> Model:
    """A line's initial model, with dense parameters rounded as published: before the first snapshot a replica
    has the model that it reads from it."""
    model = build_model(features, config.model)
    _, dense = round_dense(model.read_dense(), config.parameter_server.delta_format)
    model.write_dense(dense)
    return model


class Replica(ItemVectors):
    """Catalogue, item counters, rows, dense parameters and index, all of one version. ``shards``: number of
    retrieval shards that hold vectors and index in its place; 0: it holds them itself."""

    def __init__(self, features: FeatureSet, config: Config, shards: int = 0) -> None:
        super().__init__(features, config, tables_of(config.model), shards)
        self.counters = features.counter_table(1024)
        self.counted: list[int] = []  # offsets of ``events`` up to which the counters count
        self.model = published_model(features, config)
        self.groups = GroupIndex()
        self.surplus = GroupIndex()  # by values for which an item has no key column left
        self.values = ValueIndex(self.catalogue, self.surplus)
        for rule in config.safety.rules:  # kept from the start: no request waits for them
            self.values.items(rule.field, rule.value)
        for base in Policies(config.policy, surfaces=config.surfaces).bases.values():
            self.values.closed_by(base.rules)
        self.popularity = Popularity(features, self.catalogue)
        self.covisits = Covisits(config.covisits)
        self._copied: Covisits | None = None  # a full copy that is being read
        self._narrowing: Narrowing | None = None  # to what the model reads
        # Last step that moved each item's vector, 0 for none since the replica's snapshot.
        self.moved_at: Keys = np.zeros(0, np.int64)
        self._categorical = features.schema.names("item", CATEGORICAL)
        slots = features.slot_starts.values()
        self._last_columns = [start + width - 1 for start, width in slots if width > 1]
        self._group_slots = [features.slot(f"item.{name}") for name in features.schema.groups]

    def make_room_for_items(self, count: int) -> None:
        super().make_room_for_items(count)
        self.popularity.reserve(count)

    def make_room_for_counters(self, count: int) -> None:
        """As ``make_room_for_items``, for the counters of so many keys."""
        self.counters.reserve(count)

    def apply_records(self, records: Sequence[tuple[Item, int]]) -> None:
        self.apply_items([item for item, _ in records], records[-1][1])

    def apply_item(self, item: Item, offset: int) -> None:
        """Applies a published, changed or removed item. ``offset`` is the next to read of ``items``."""
        self.apply_items([item], offset)

    def apply_items(self, items: Sequence[Item], offset: int) -> None:
        """Applies items in order. Computing their vectors together takes an eighth of the time."""
        moved = np.unique(np.array([self._enter(item) for item in items], np.int64))
        self.values.update(moved)
        self._place(moved)
        self.catalogue_offset = offset

    def _enter(self, item: Item) -> int:
        before = self.catalogue.index_of(item.item_id)
        old = self._groups_of(before) if before is not None else ()
        full = self._surplus_of(before) if before is not None else ()
        index = self.catalogue.apply(item)
        if before is None:
            self.popularity.enter(index, self.counters)
        new = self._groups_of(index)
        if new != old:  # leaving a group takes time linear in its size
            self.groups.move(index, old, new)
        surplus = self._surplus_of(index)
        if surplus != full:
            self.surplus.move(index, full, surplus)
        return index

    def apply_item_state(self, state: ItemState, offset: int) -> None:
        """Sets item counters. ``offset`` is the next to read of ``item_state``."""
        keys = np.frombuffer(state.keys, np.int64)
        values = np.frombuffer(state.values, np.float32).reshape(-1, self.counters.columns)
        last_ms = np.frombuffer(state.last_ms, np.int64)
        if len(dropped := np.frombuffer(state.dropped, np.int64)):
            self.counters.drop(dropped)
            nothing = np.zeros((len(dropped), self.counters.columns), np.float32)
            self.popularity.update(dropped, nothing, np.zeros_like(dropped))
        self.counters.set(keys, values, last_ms)
        self.popularity.update(keys, values, last_ms)
        self._apply_covisits(state)
        self.counted, self.item_state_offset = state.offsets, offset

    def _apply_covisits(self, state: ItemState) -> None:
        """Adds visits; a full copy replaces all rows once it is complete."""
        self.covisits.add(np.frombuffer(state.visits, np.int64).reshape(-1, COLUMNS))
        self.covisits.remove(np.frombuffer(state.gone, np.int64))
        if state.parts and state.part == 0:
            self._copied = Covisits(self.config.covisits)
        if self._copied is not None and state.parts:
            if state.covisits is not None:
                self._copied.put(state.covisits)
            if state.part == state.parts - 1:
                self.covisits, self._copied = self._copied, None

    def apply_step(self, delta: StepDelta) -> bool:
        if delta.step <= self.step:
            raise ValueError(f"step {delta.step} came after {self.step}; a replica never goes back")
        for name, changed in delta.tables.items():
            self.rows[name].set(changed.keys, changed.values, delta.step)
            if len(changed.removed):
                self.rows[name].remove(changed.removed, delta.step)
        if delta.dense is not None:
            self.model.write_dense(delta.dense)
        if "items" in delta.tables:
            moved = delta.tables["items"]
            indices = self._indices_of(np.concatenate([moved.keys, moved.removed]))
            self._place(indices)
            self.moved_at = grown(self.moved_at, len(self.catalogue))
            self.moved_at[indices] = delta.step
        self.step, self.step_time_ms = delta.step, delta.time_ms
        return delta.digest is None or delta.digest == self.digest

    @property
    def digest(self) -> int:
        """Digest of all rows, modulo 2⁶⁴."""
        return sum(store.digest for store in self.rows.values()) % 2**64

    def _other_model(self, model: ModelConfig | None, reads: FeatureSet | None) -> Model | None:
        model, reads = model or self.model.config, reads or self.features
        if (model, reads) == (self.model.config, self.model.features):
            return None
        return published_model(reads, replace(self.config, model=model))

    def read(self, features: RequestFeatures) -> RequestFeatures:
        """The part of a request's features that the model reads."""
        if self.model.features.digest == self.features.digest:
            return features
        narrowing = self._narrowing
        if narrowing is None or narrowing.narrow is not self.model.features:
            narrowing = self._narrowing = Narrowing(self.features, self.model.features)
        return narrowing.features(features)

    def _tables_of(self, model: ModelConfig | None) -> tuple[TableConfig, ...]:
        return self._tables if model is None else tables_of(model)

    def install(self, prepared: PreparedVersion) -> None:
        """Replaces rows, dense parameters, vectors and, where it is another one, the model, at once."""
        super().install(prepared)
        self.moved_at = np.zeros(0, np.int64)
        if prepared.model is not None:
            self.model, self._tables = prepared.model, tables_of(prepared.model.config)
        if prepared.dense is not None and len(prepared.dense):
            self.model.write_dense(prepared.dense)

    def _groups_of(self, index: int) -> tuple[int, ...]:
        keys = self.catalogue.keys[index].tolist() if self.catalogue.alive[index] else []
        return tuple(k for s in self._group_slots for k in keys[s.start : s.stop] if k)

    def _surplus_of(self, index: int) -> tuple[int, ...]:
        """Keys of an item's values for which its columns have no room."""
        keys = self.catalogue.keys[index]
        if not keys[self._last_columns].any():
            return ()
        fields = self.catalogue.fields[index]
        values = ((f"item.{n}", value) for n in self._categorical for value in values_of(fields.get(n)))
        return tuple(key for slot, v in values if (key := key_of(slot, v)) not in keys)
