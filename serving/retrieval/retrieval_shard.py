"""The vectors of the items of one retrieval shard, searched as they were at a version. Pure.

A shard follows the log by itself and may be ahead of the replica that asks. So it remembers what its last
steps and items replaced (separately: either may be ahead of the other), leaves out the index's hits that
changed since the version, and compares these items by their old vectors. Versions that it has not reached
yet, or has forgotten, are refused.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from parameter_server.publish.deltas import StepDelta
from parameter_server.table.routing import shard_of
from recsys.arrays.growable import grown
from recsys.config.system_config import Config, tables_of
from recsys.events.event_types import Item
from recsys.events.hashing import key_of
from recsys.features.feature_set import FeatureSet
from serving.index.nearest import Overlay, nearest
from serving.query import VectorVersion
from serving.replica.item_vectors import ItemVectors, PreparedVersion

Keys = NDArray[np.int64]
Rows = NDArray[np.float32]
STEPS_KEPT: Final = 64  # at four steps a second: for a replica that is 16 seconds behind
ROWS_KEPT: Final = 65_536  # of all those steps; 8 MiB, 32 numbers wide
ITEMS_KEPT: Final = 4_096
BEHIND, FORGOTTEN, OTHER_LINE = "behind", "forgotten", "line"  # reasons to refuse a version
OTHER_SHARD = "part"  # the request was for another shard, or for another number of shards
_NO_FIELDS: Final[dict[str, Any]] = {}


_WIRE: Final = {"keys": "without", "keys_are_allowed": "only", "user_vectors": "sides"}


class ShardRequest(msgspec.Struct, frozen=True, rename=_WIRE):
    """Searches of one request, to ``shard`` of ``shards``. ``queries`` (Q, V) float32: first
    ``user_vectors``, then vectors of items, searched roughly; ``ks``: hits for each; ``keys``: int64, of the
    items that may be returned if ``keys_are_allowed``, else of those that must not be."""

    version: VectorVersion
    queries: bytes
    ks: list[int]
    user_vectors: int = 0
    keys: bytes = b""
    wait_ms: float = 0.0  # for a version that the shard has not reached yet
    shard: int = 0
    shards: int = 0  # 0: the caller knows one shard alone
    keys_are_allowed: bool = False


class ShardResponse(msgspec.Struct, frozen=True):
    """Hits of a shard: for each query ``counts`` of them, best first, as int64 ``keys`` and float32
    ``products``; or the reason why there are none, ``refused``. ``index``: name of the searched index."""

    index: str = ""
    counts: list[int] = []
    keys: bytes = b""
    products: bytes = b""
    refused: str = ""


@dataclass(frozen=True)
class _ReplacedRows:
    """Rows that a step replaced. The keys may be of items that are not known (yet)."""

    step: int
    keys: Keys
    rows: Rows


@dataclass(frozen=True)
class _ReplacedItem:
    """An item as it was before a record. ``offset``: the next to read after that record."""

    offset: int
    index: int
    alive: bool
    keys_I: Keys
    numbers_M: Rows


class RetrievalShard(ItemVectors):
    """Shard ``shard`` of ``shards``: catalogue, ``items`` rows, vectors and index of its items. It keeps no
    counters, no fields, and no rows of other tables."""

    _digested = False  # a share can't be compared

    def __init__(self, features: FeatureSet, config: Config, shard: int, shards: int) -> None:
        items = [table for table in tables_of(config.model) if table.name == "items"]
        super().__init__(features, config, items)
        self.shard, self.shards = shard, shards
        self._item_keys = np.empty(8, np.int64)  # by index: contiguous copy of a catalogue column
        self._replaced_rows: deque[_ReplacedRows] = deque()
        self._rows_kept = 0
        self._replaced_items: deque[_ReplacedItem] = deque()
        self._oldest_step = self._oldest_offset = 0  # of the versions that can be searched

    def apply_records(self, records: Sequence[tuple[Item, int]]) -> None:
        """Applies items, each with the offset to read next. Items of other shards only move the offset."""
        keys = np.array([key_of("item", item.item_id) for item, _ in records], np.int64)
        own = shard_of(keys, self.shards) == self.shard
        moved = [self._enter(*records[place]) for place in np.flatnonzero(own).tolist()]
        self._place(np.unique(np.array(moved, np.int64)))
        self.catalogue_offset = records[-1][1]

    def _enter(self, item: Item, offset: int) -> int:
        catalogue = self.catalogue
        index = catalogue.index_of(item.item_id)
        if index is None:
            index = catalogue.apply(item)
            self._item_keys = grown(self._item_keys, len(catalogue))
            self._item_keys[index] = catalogue.keys[index, 0]
            before = self._item_at(index, offset, alive=False)  # only its absence matters
        else:
            before = self._item_at(index, offset, bool(catalogue.alive[index]))
            catalogue.apply(item)
        catalogue.fields[index] = _NO_FIELDS  # the largest part of an item: replicas hold them
        self._replaced_items.append(before)
        if len(self._replaced_items) > ITEMS_KEPT:
            self._oldest_offset = self._replaced_items.popleft().offset
        return index

    def _item_at(self, index: int, offset: int, alive: bool) -> _ReplacedItem:
        keys_I, numbers_M = self.catalogue.keys[index].copy(), self.catalogue.numbers[index].copy()
        return _ReplacedItem(offset, index, alive, keys_I, numbers_M)

    def apply_step(self, delta: StepDelta) -> bool:
        """Applies the shard's share of a step. Returns True: a share can't be compared with the digest."""
        if delta.step <= self.step:
            raise ValueError(f"step {delta.step} came after {self.step}; a shard never goes back")
        changed = delta.tables.get("items")
        if changed is not None:
            keys, values = self._own(changed.keys, changed.values)
            removed = changed.removed[shard_of(changed.removed, self.shards) == self.shard]
            touched, store = np.concatenate([keys, removed]), self.rows["items"]
            self._remember(_ReplacedRows(delta.step, touched, store.lookup(touched)))
            store.set(keys, values, delta.step)
            if len(removed):
                store.remove(removed, delta.step)
            self._place(self._indices_of(touched))
        self.step, self.step_time_ms = delta.step, delta.time_ms
        return True

    def _remember(self, replaced: _ReplacedRows) -> None:
        self._replaced_rows.append(replaced)
        self._rows_kept += len(replaced.keys)
        while len(self._replaced_rows) > STEPS_KEPT or self._rows_kept > ROWS_KEPT:
            forgotten = self._replaced_rows.popleft()
            self._rows_kept -= len(forgotten.keys)
            self._oldest_step = forgotten.step

    def install(self, prepared: PreparedVersion) -> None:
        """Starts from a snapshot, without knowledge of the steps before it."""
        super().install(prepared)
        self._replaced_rows.clear()
        self._rows_kept, self._oldest_step = 0, prepared.version.step

    def _own(self, keys: Keys, rows: Rows) -> tuple[Keys, Rows]:
        own = shard_of(keys, self.shards) == self.shard
        return keys[own], rows[own]

    def make_room_for_items(self, count: int) -> None:
        super().make_room_for_items(count)
        self._item_keys = grown(self._item_keys, len(self.catalogue) + count)

    # --- searching ---

    def refusal_of(self, request: ShardRequest) -> str:
        """Reason why a request can't be answered; empty where it can."""
        version, addressee = request.version, (request.shard, request.shards)
        if request.shards and addressee != (self.shard, self.shards):
            return OTHER_SHARD
        if (version.line, version.epoch) != (self.line, self.epoch):
            return OTHER_LINE
        if version.step < self._oldest_step or version.catalogue_offset < self._oldest_offset:
            return FORGOTTEN
        if version.step > self.step or version.catalogue_offset > self.catalogue_offset:
            return BEHIND
        return ""

    def search(self, request: ShardRequest) -> ShardResponse:
        """The nearest items to each query that lived at the version and aren't excluded."""
        refused = self.refusal_of(request)
        if refused:
            return ShardResponse(refused=refused)
        named = self._indices_of(np.frombuffer(request.keys, np.int64))
        changed, overlay = self._as_of(request.version, named, request.keys_are_allowed)
        wanted = self.catalogue.living.copy()
        if request.keys_are_allowed:
            unnamed = np.ones(len(wanted), np.bool_)
            unnamed[named] = False
            wanted.take(np.flatnonzero(unnamed))
        wanted.take(changed if request.keys_are_allowed else np.concatenate([named, changed]))
        queries = np.frombuffer(request.queries, np.float32)
        queries = queries.reshape(len(request.ks), self.index.dim)
        of_users = request.user_vectors
        self.queries.extend(queries[:of_users])
        keys = self._item_keys[: len(self.catalogue)]
        hits = [
            nearest(self.index, keys, query, k, wanted, overlay, rough=place >= of_users)
            for place, (query, k) in enumerate(zip(queries, request.ks, strict=True))
        ]
        counts, near = [len(keys) for keys, _ in hits], b"".join(k.tobytes() for k, _ in hits)
        products = b"".join(products.tobytes() for _, products in hits)
        return ShardResponse(self.index.name, counts, near, products)

    def _as_of(self, version: VectorVersion, named: Keys, only: bool) -> tuple[Keys, Overlay]:
        """The items that changed since a version, and the old vectors of those that may be returned."""
        offset = version.catalogue_offset  # newest first, so that older entries aren't looked at
        newer_steps = takewhile(lambda row: row.step > version.step, reversed(self._replaced_rows))
        newer_items = takewhile(lambda item: item.offset > offset, reversed(self._replaced_items))
        steps, records = list(newer_steps)[::-1], list(newer_items)
        if not steps and not records:
            return np.empty(0, np.int64), Overlay.none(self.index.dim)
        step_keys = np.concatenate([np.empty(0, np.int64), *(rows.keys for rows in steps)])
        row_keys, first = np.unique(step_keys, return_index=True)  # the oldest is the state then
        no_rows = np.empty((0, self.index.dim), np.float32)
        old_rows = np.concatenate([no_rows, *(rows.rows for rows in steps)])[first]
        items = {item.index: item for item in records}
        item_indices = np.array(list(items), np.int64)
        changed = np.union1d(self._indices_of(row_keys), item_indices)
        keys_MI, numbers_MM = self.catalogue.keys[changed], self.catalogue.numbers[changed]
        alive_M = self.catalogue.alive[changed]
        for place, item in zip(np.searchsorted(changed, item_indices), items.values(), strict=True):
            keys_MI[place], numbers_MM[place] = item.keys_I, item.numbers_M
            alive_M[place] = item.alive
        keys_M = keys_MI[:, 0].copy()
        rows_MV = self.rows["items"].lookup(keys_M)
        if len(row_keys):
            places = np.searchsorted(row_keys, keys_M).clip(max=len(row_keys) - 1)
            replaced_M = row_keys[places] == keys_M
            rows_MV[replaced_M] = old_rows[places[replaced_M]]
        may_M = alive_M & (np.isin(changed, named) == only)
        vectors_MV = self._made_of(keys_MI[may_M], numbers_MM[may_M], rows_MV[may_M])
        return changed, Overlay(changed[may_M], keys_M[may_M], vectors_MV)
