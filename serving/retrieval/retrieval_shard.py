"""The vectors of the items that fall to one shard of retrieval, searched as they were at a version. Pure.

An answer is of one version, and a shard follows the log by itself: it may be a step ahead of the replica that
asks. So it remembers, for its last steps and items, what each of them replaced, and searches as it was before
them: what has changed since is left out of the index's answer and looked at by its old vector. What it hasn't
come to yet, or has forgotten, it doesn't answer, and says so.

A vector is made of an item's fields (by the offset of ``items``) and of its row (by the step), and either may
be ahead of the other: so rows and fields are remembered apart.
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
from recsys.events.records import ItemState
from recsys.features.feature_set import FeatureSet
from serving.index.nearest import Overlay, nearest
from serving.replica.item_vectors import Fresh, ItemVectors

Keys = NDArray[np.int64]
Rows = NDArray[np.float32]
STEPS_KEPT: Final = 64  # at four steps a second: for a replica that is 16 seconds behind
ROWS_KEPT: Final = 65_536  # of all those steps; 8 MiB, 32 numbers wide
ITEMS_KEPT: Final = 4_096
BEHIND, FORGOTTEN, OTHER_LINE = "behind", "forgotten", "line"  # why a version can't be searched
OTHER_PART = "part"  # the ask was meant for another shard, or for one of another number of them
_NO_FIELDS: Final[dict[str, Any]] = {}


class Version(msgspec.Struct, frozen=True):
    """What vectors depend on: the weights, and how far ``items`` was read."""

    line: str
    epoch: int
    step: int
    catalogue_offset: int


class Ask(msgspec.Struct, frozen=True):
    """All that a request asks of one shard. ``queries`` (Q, V) float32, of which the first ``sides`` are user
    sides, and the others vectors of items, for which a rough search will do; ``ks`` how many are wanted of
    each; ``without`` the int64 keys that mustn't come. ``shard`` of ``shards`` is who is asked: one that
    holds other items would leave some out, and nobody would know."""

    version: Version
    queries: bytes
    ks: list[int]
    sides: int = 0
    without: bytes = b""
    wait_ms: float = 0.0  # for a version that the shard hasn't come to yet
    shard: int = 0
    shards: int = 0  # 0: asked by who knows one shard alone


class Told(msgspec.Struct, frozen=True):
    """A shard's answer: of each query so many ``counts``, best first, as int64 ``keys`` and float32
    ``products``; or why there is none, ``refused``. ``index``: the name of the index that was searched."""

    index: str = ""
    counts: list[int] = []
    keys: bytes = b""
    products: bytes = b""
    refused: str = ""


@dataclass(frozen=True)
class _Replaced:
    """The rows that a step replaced: the keys may be of items that aren't known (yet)."""

    step: int
    keys: Keys
    rows: Rows


@dataclass(frozen=True)
class _Before:
    """An item as it was before a record. ``offset``: the next to read after that record."""

    offset: int
    index: int
    alive: bool
    keys_I: Keys
    numbers_M: Rows


class RetrievalShard(ItemVectors):
    """One of ``shards``: catalogue, rows of ``items``, vectors and index of the items whose keys fall to it.
    It keeps no counters, no fields, and no rows of other tables."""

    def __init__(self, features: FeatureSet, config: Config, shard: int, shards: int) -> None:
        items = [table for table in tables_of(config.model) if table.name == "items"]
        super().__init__(features, config, items)
        self.shard, self.shards = shard, shards
        self._item_keys = np.empty(
            8, np.int64
        )  # by index: a column of the catalogue's, side by side
        self._replaced: deque[_Replaced] = deque()
        self._rows_kept = 0
        self._items_before: deque[_Before] = deque()
        self._oldest_step = self._oldest_offset = 0  # of the versions that can be searched

    def apply_records(self, records: Sequence[tuple[Item, int]]) -> None:
        """Items, each with the offset to read next: those of other shards only move the offset."""
        keys = np.array([key_of("item", item.item_id) for item, _ in records], np.int64)
        mine = shard_of(keys, self.shards) == self.shard
        moved = [self._enter(*records[place]) for place in np.flatnonzero(mine).tolist()]
        self._place(np.unique(np.array(moved, np.int64)))
        self.catalogue_offset = records[-1][1]

    def _enter(self, item: Item, offset: int) -> int:
        catalogue = self.catalogue
        index = catalogue.index_of(item.item_id)
        if index is None:
            index = catalogue.apply(item)
            self._item_keys = grown(self._item_keys, len(catalogue))
            self._item_keys[index] = catalogue.keys[index, 0]
            before = self._before(index, offset, alive=False)  # that it wasn't there is all
        else:
            before = self._before(index, offset, bool(catalogue.alive[index]))
            catalogue.apply(item)
        catalogue.fields[index] = _NO_FIELDS  # the largest part of an item: replicas hold them
        self._items_before.append(before)
        if len(self._items_before) > ITEMS_KEPT:
            self._oldest_offset = self._items_before.popleft().offset
        return index

    def _before(self, index: int, offset: int, alive: bool) -> _Before:
        keys, numbers = self.catalogue.keys[index].copy(), self.catalogue.numbers[index].copy()
        return _Before(offset, index, alive, keys, numbers)

    def apply_step(self, delta: StepDelta) -> bool:
        """The shard's part of a step. True: what it holds is too little to be compared with a digest."""
        if delta.step <= self.step:
            raise ValueError(f"step {delta.step} came after {self.step}; a shard never goes back")
        changed = delta.tables.get("items")
        if changed is not None:
            keys, values = self._own(changed.keys, changed.values)
            removed = changed.removed[shard_of(changed.removed, self.shards) == self.shard]
            touched, store = np.concatenate([keys, removed]), self.rows["items"]
            self._remember(_Replaced(delta.step, touched, store.lookup(touched)))
            store.set(keys, values)
            if len(removed):
                store.remove(removed)
            self._place(self._known(touched))
        self.step, self.step_time_ms = delta.step, delta.time_ms
        return True

    def apply_item_state(self, state: ItemState, offset: int) -> None:
        """Nothing: what is near has nothing to do with what is popular."""

    def _remember(self, replaced: _Replaced) -> None:
        self._replaced.append(replaced)
        self._rows_kept += len(replaced.keys)
        while len(self._replaced) > STEPS_KEPT or self._rows_kept > ROWS_KEPT:
            forgotten = self._replaced.popleft()
            self._rows_kept -= len(forgotten.keys)
            self._oldest_step = forgotten.step

    def take(self, fresh: Fresh) -> None:
        """Starts from a snapshot: of the steps before it nothing is known."""
        super().take(fresh)
        self._replaced.clear()
        self._rows_kept, self._oldest_step = 0, fresh.step

    def _own(self, keys: Keys, rows: Rows) -> tuple[Keys, Rows]:
        mine = shard_of(keys, self.shards) == self.shard
        return keys[mine], rows[mine]

    def make_room(
        self, items: Sequence[Item], states: Sequence[ItemState], steps: Sequence[StepDelta]
    ) -> None:
        super().make_room(items, states, steps)
        self._item_keys = grown(self._item_keys, len(self.catalogue) + len(items))

    # --- searching ---

    def refusal_of(self, ask: Ask) -> str:
        """Why an ask can't be answered; empty where it can."""
        if ask.shards and (ask.shard, ask.shards) != (self.shard, self.shards):
            return OTHER_PART
        return self.refusal(ask.version)

    def refusal(self, version: Version) -> str:
        """Why a version can't be searched; empty where it can."""
        if (version.line, version.epoch) != (self.line, self.epoch):
            return OTHER_LINE
        if version.step < self._oldest_step or version.catalogue_offset < self._oldest_offset:
            return FORGOTTEN
        if version.step > self.step or version.catalogue_offset > self.catalogue_offset:
            return BEHIND
        return ""

    def search(self, ask: Ask) -> Told:
        """What is nearest to each query, of the items that lived at the version, less what mustn't come."""
        refused = self.refusal_of(ask)
        if refused:
            return Told(refused=refused)
        without = self._known(np.frombuffer(ask.without, np.int64))
        changed, overlay = self._as_of(ask.version, without)
        wanted = self.catalogue.living.copy()
        wanted.take(np.concatenate([without, changed]))
        queries = np.frombuffer(ask.queries, np.float32).reshape(len(ask.ks), self.index.dim)
        self.queries.extend(queries[: ask.sides])
        keys = self._item_keys[: len(self.catalogue)]
        found = [
            nearest(self.index, keys, query, k, wanted, overlay, rough=place >= ask.sides)
            for place, (query, k) in enumerate(zip(queries, ask.ks, strict=True))
        ]
        return Told(
            index=self.index.name,
            counts=[len(keys) for keys, _ in found],
            keys=b"".join(keys.tobytes() for keys, _ in found),
            products=b"".join(products.tobytes() for _, products in found),
        )

    def _as_of(self, version: Version, without: Keys) -> tuple[Keys, Overlay]:
        """The items that have changed since a version, and as what those of them that may come stood then."""
        offset = version.catalogue_offset  # newest first, so that what is older isn't looked at
        steps = list(takewhile(lambda its: its.step > version.step, reversed(self._replaced)))[::-1]
        records = list(takewhile(lambda its: its.offset > offset, reversed(self._items_before)))
        if not steps and not records:
            return np.empty(0, np.int64), Overlay.none(self.index.dim)
        row_keys, first = np.unique(
            np.concatenate([np.empty(0, np.int64), *(its.keys for its in steps)]),
            return_index=True,
        )  # the oldest of each is what stood then
        old_rows = np.concatenate(
            [np.empty((0, self.index.dim), np.float32), *(its.rows for its in steps)]
        )[first]
        fields = {its.index: its for its in records}
        its_fields = np.array(list(fields), np.int64)
        changed = np.union1d(self._known(row_keys), its_fields)
        keys_MI, numbers_MM = self.catalogue.keys[changed], self.catalogue.numbers[changed]
        alive_M = self.catalogue.alive[changed]
        for place, its in zip(np.searchsorted(changed, its_fields), fields.values(), strict=True):
            keys_MI[place], numbers_MM[place], alive_M[place] = its.keys_I, its.numbers_M, its.alive
        keys_M = keys_MI[:, 0].copy()
        rows_MV = self.rows["items"].lookup(keys_M)
        if len(row_keys):
            places = np.searchsorted(row_keys, keys_M).clip(max=len(row_keys) - 1)
            replaced_M = row_keys[places] == keys_M
            rows_MV[replaced_M] = old_rows[places[replaced_M]]
        may_M = alive_M & ~np.isin(changed, without)
        vectors_MV = self._made_of(keys_MI[may_M], numbers_MM[may_M], rows_MV[may_M])
        return changed, Overlay(changed[may_M], keys_M[may_M], vectors_MV)
