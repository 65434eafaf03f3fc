"""Whatever shards have gone on to, they answer from the version that is asked for, and as one would alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parameter_server.publish.deltas import Changed, StepDelta
from parameter_server.storage.mapped_rows import MappedRows
from parameter_server.storage.snapshot_rows import map_rows
from parameter_server.storage.snapshots import write_part
from parameter_server.table.routing import shard_of
from recsys.arrays.bitmap import Bitmap
from recsys.events.event_types import Item
from recsys.events.hashing import key_of, uniforms
from serving.index.exact_order import products as exact_products
from serving.index.inverted_lists import Centroids
from serving.index.ivf_index import IvfIndex
from serving.index.nearest import merge_hits
from serving.query import VectorVersion
from serving.replica.item_vectors import ModelVersion
from serving.replica.replica import Replica
from serving.retrieval.retrieval_shard import (
    BEHIND,
    FORGOTTEN,
    OTHER_LINE,
    OTHER_SHARD,
    STEPS_KEPT,
    RetrievalShard,
    ShardRequest,
    ShardResponse,
)
from tests.support.serving.replica_harness import config, item
from tests.support.training.small_feed import FEATURES

ITEMS, DIM = 24, config().model.vector_dim
KEYS = np.array([key_of("item", f"v{n}") for n in range(ITEMS)], np.int64)


def step_of(step: int, moved: Sequence[int], gone: Sequence[int] = ()) -> StepDelta:
    """A step that moves the rows of some items, known or not, and drops others'."""
    keys, removed = KEYS[sorted(set(moved))], KEYS[sorted(set(gone) - set(moved))]
    rows = (uniforms(step, keys, DIM) - 0.5).astype(np.float32)
    return StepDelta(step, 0, {"items": Changed(keys, rows, removed)}, None, {})


def record_of(number: int, n: int) -> Item:
    """The number-th record of ``items``: an item that comes, changes or goes."""
    if number % 4 == 3:
        return Item(time_ms=0, item_id=f"v{n}", removed=True)
    return item(n, author=f"a{(n + number) % 4}", tags=[f"t{number % 3}"])


@dataclass(frozen=True)
class Then:
    """What a replica held at a version."""

    version: VectorVersion
    keys: np.ndarray
    alive: np.ndarray
    vectors: np.ndarray

    def nearest(self, query: np.ndarray, k: int, named: np.ndarray, only: bool = False) -> tuple[Any, Any]:
        products = exact_products(self.vectors, np.arange(len(self.vectors)), query)
        may = self.alive & (np.isin(self.keys, named) == only)
        return merge_hits([(self.keys[may], products[may])], k)


def then(replica: Replica) -> Then:
    version = VectorVersion(replica.line, replica.epoch, replica.step, replica.catalogue_offset)
    keys = replica.catalogue.keys[:, 0].copy()
    return Then(version, keys, replica.catalogue.alive.copy(), replica.index.vectors.copy())


def apply(its: Replica | RetrievalShard, what: Any) -> None:
    if isinstance(what, StepDelta):
        its.apply_step(what)
    else:
        its.apply_records(what)


def shards_of(count: int) -> list[RetrievalShard]:
    return [RetrievalShard(FEATURES, config(), n, count) for n in range(count)]


def parts(told: ShardResponse) -> list[tuple[np.ndarray, np.ndarray]]:
    ends = np.cumsum(told.counts)[:-1]
    keys, products = np.frombuffer(told.keys, np.int64), np.frombuffer(told.products, np.float32)
    return list(zip(np.split(keys, ends), np.split(products, ends), strict=True))


def asked(
    shards: Sequence[RetrievalShard], version: VectorVersion, queries: np.ndarray, k: int,
    named: np.ndarray, only: bool = False,
) -> list[tuple[np.ndarray, np.ndarray]]:  # fmt: skip
    """What all shards find for each query, without the named items or among them only."""
    ks = [k] * len(queries)
    ask = ShardRequest(version, queries.tobytes(), ks, 1, named.tobytes(), keys_are_allowed=only)
    told = [shard.search(ask) for shard in shards]
    assert [its.refused for its in told] == [""] * len(shards)
    by_query = zip(*map(parts, told), strict=True)
    return [merge_hits(its, k) for its in by_query]


def refusal(shard: RetrievalShard, version: VectorVersion) -> str:
    return shard.refusal_of(ShardRequest(version, b"", []))


some_items = st.lists(st.integers(0, ITEMS - 1), max_size=8)


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.tuples(some_items, some_items), min_size=1, max_size=6),
    records=st.lists(st.lists(st.integers(0, ITEMS - 1), min_size=1, max_size=4), min_size=1, max_size=6),
    order=st.randoms(use_true_random=False),
    named=some_items,
    only=st.booleans(),
    k=st.integers(1, ITEMS),
    count=st.sampled_from((1, 2, 3)),
)
def test_shards_find_what_was_nearest_at_any_version(
    steps: Any, records: Any, order: Any, named: Any, only: bool, k: int, count: int
) -> None:
    deltas = [step_of(n + 1, *what) for n, what in enumerate(steps)]
    numbered, batches = 0, []
    for what in records:
        batches.append([(record_of(numbered + i, n), numbered + i + 1) for i, n in enumerate(what)])
        numbered += len(what)

    def mixed() -> list[Any]:
        """Steps and items each in order, and mixed as it comes."""
        waiting: list[list[Any]] = [list(deltas), list(batches)]
        found = []
        while any(waiting):
            found.append(order.choice([its for its in waiting if its]).pop(0))
        return found

    replica, past = Replica(FEATURES, config()), []
    for what in mixed():
        apply(replica, what)
        past.append(then(replica))
    shards = shards_of(count)
    for shard in shards:
        for what in mixed():
            apply(shard, what)
    queries = (uniforms(7, np.arange(3), DIM) - 0.5).astype(np.float32)
    queries[2] = 0  # all are equal: keys alone say which come
    for its in past:
        found = asked(shards, its.version, queries, k, KEYS[named], only)
        for query, (keys, products) in zip(queries, found, strict=True):
            expected = its.nearest(query, k, KEYS[named], only)
            assert keys.tolist() == expected[0].tolist()
            assert products.tobytes() == expected[1].tobytes()


def filled(shards: Sequence[RetrievalShard], steps: int) -> None:
    for shard in shards:
        shard.apply_records([(item(n), n + 1) for n in range(ITEMS)])
        for step in range(1, steps + 1):
            shard.apply_step(step_of(step, range(0, ITEMS, 2)))


def test_items_fall_to_one_shard_each_and_fields_to_none() -> None:
    shards = shards_of(3)
    filled(shards, 1)
    held = [shard.catalogue.keys[:, 0] for shard in shards]
    assert sorted(np.concatenate(held).tolist()) == sorted(KEYS.tolist())
    assert all((shard_of(keys, 3) == n).all() for n, keys in enumerate(held))
    assert all(not any(shard.catalogue.fields) for shard in shards)
    assert all(shard.catalogue_offset == ITEMS for shard in shards)
    rows = [len(shard.rows["items"]) for shard in shards]
    assert sum(rows) == ITEMS // 2 and set(shards[0].rows) == {"items"}


def test_what_cannot_be_searched_is_refused_and_why() -> None:
    [shard] = shards_of(1)
    filled([shard], STEPS_KEPT + 5)
    now = VectorVersion("main", 0, STEPS_KEPT + 5, ITEMS)
    ask = ShardRequest(now, np.zeros(DIM, np.float32).tobytes(), [3])
    assert refusal(shard, now) == "" and shard.search(ask).counts == [3]
    assert refusal(shard, replace_version(now, step=5)) == ""
    assert refusal(shard, replace_version(now, step=4)) == FORGOTTEN
    assert refusal(shard, replace_version(now, step=now.step + 1)) == BEHIND
    assert refusal(shard, replace_version(now, catalogue_offset=ITEMS + 1)) == BEHIND
    assert refusal(shard, replace_version(now, epoch=1)) == OTHER_LINE
    assert shard.search(ShardRequest(replace_version(now, line="other"), b"", [])).refused == OTHER_LINE
    fresh = shard.prepare({}, None, ModelVersion("main", 1, 40))
    shard.install(fresh)
    later = replace_version(now, epoch=1, step=40)
    assert refusal(shard, now) == OTHER_LINE and refusal(shard, later) == ""
    assert refusal(shard, replace_version(later, step=39)) == FORGOTTEN


def test_an_ask_that_was_meant_for_another_shard_is_refused() -> None:
    shards = shards_of(2)
    filled(shards, 1)
    version, query = VectorVersion("main", 0, 1, ITEMS), np.zeros(DIM, np.float32).tobytes()

    def refused(shard: int, shards_: int) -> list[str]:
        ask = ShardRequest(version, query, [3], shard=shard, shards=shards_)
        return [its.search(ask).refused for its in shards]

    assert refused(0, 2) == ["", OTHER_SHARD] and refused(1, 2) == [OTHER_SHARD, ""]
    assert refused(0, 3) == refused(2, 3) == [OTHER_SHARD, OTHER_SHARD]
    later = ShardRequest(replace_version(version, step=9), query, [3], shard=0, shards=3)
    assert shards[0].refusal_of(later) == OTHER_SHARD  # no version is waited for


def replace_version(version: VectorVersion, **changes: Any) -> VectorVersion:
    fields = {name: getattr(version, name) for name in VectorVersion.__struct_fields__}
    return VectorVersion(**(fields | changes))


def test_a_snapshot_holds_the_shard_s_own_rows_alone() -> None:
    rows = (uniforms(3, KEYS, DIM) - 0.5).astype(np.float32)
    shards, replica = shards_of(2), Replica(FEATURES, config())
    for its in (*shards, replica):
        its.apply_records([(item(n), n + 1) for n in range(ITEMS)])
        its.install(its.prepare({"items": (KEYS, rows)}, None, ModelVersion("main", 2, 9)))
    assert sum(len(shard.rows["items"]) for shard in shards) == ITEMS
    was, query = then(replica), rows[:1]
    [(keys, products)] = asked(shards, was.version, query, 7, KEYS[:2])
    expected = was.nearest(query[0], 7, KEYS[:2])
    assert (keys.tolist(), products.tolist()) == (expected[0].tolist(), expected[1].tolist())


def test_a_shard_reads_no_mapped_row_but_those_of_its_items(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = (uniforms(3, KEYS, DIM) - 0.5).astype(np.float32)
    arrays = {"table/items/keys": KEYS, "table/items/values": rows}
    write_part(tmp_path, "main", 0, 9, 0, 1, arrays, {"step": 9})
    mapped, read = map_rows(tmp_path, "main").tables, list[int]()
    [shard, _] = shards_of(2)
    shard.apply_records([(item(n), n + 1) for n in range(ITEMS)])
    real = MappedRows.lookup

    def lookup(own: MappedRows, keys: np.ndarray, *more: Any, **named: Any) -> Any:
        read.extend(keys.tolist())
        return real(own, keys, *more, **named)

    monkeypatch.setattr(MappedRows, "lookup", lookup)
    shard.install(shard.prepare(mapped, None, ModelVersion("main", 0, 9)))
    assert sorted(read) == sorted(KEYS[shard_of(KEYS, 2) == 0].tolist())
    shard.apply_step(step_of(10, range(ITEMS), range(3)))
    replica = Replica(FEATURES, config())
    replica.apply_records([(item(n), n + 1) for n in range(ITEMS)])
    replica.install(replica.prepare({"items": (KEYS, rows)}, None, ModelVersion("main", 0, 9)))
    replica.apply_step(step_of(10, range(ITEMS), range(3)))
    own = replica.catalogue.indices_of_keys(shard.catalogue.keys[:, 0])
    assert (shard.index.vectors[: len(own)] == replica.index.vectors[own]).all()


def with_lists(shard: RetrievalShard, probes: int) -> None:
    """Goes over to lists around fixed centroids."""
    centroids = Centroids((uniforms(11, np.arange(4), DIM) - 0.5).astype(np.float32))
    index = IvfIndex(centroids, probes, ITEMS)
    its = np.arange(len(shard.index))
    index.set(its, shard.index.vectors[its], shard.catalogue.alive)
    shard.swap(index)


@pytest.mark.parametrize("probes", [1, 2, 4])
def test_from_lists_comes_what_would_have_come_then(probes: int) -> None:
    """A shard that has gone on, against one that stands at the version, by the same centroids."""
    queries = (uniforms(5, np.arange(12), DIM) - 0.5).astype(np.float32)
    ahead, stays = shards_of(1)[0], shards_of(1)[0]
    for shard in (ahead, stays):
        filled([shard], 3)
        with_lists(shard, probes)
    version = VectorVersion("main", 0, 3, ITEMS)
    ahead.apply_step(step_of(4, range(ITEMS)))
    ahead.apply_records([(record_of(n, n), ITEMS + n + 1) for n in range(8)])
    ahead.apply_step(step_of(5, range(5), range(5, 9)))
    for k in (1, 4, ITEMS):
        mine = asked([ahead], version, queries, k, KEYS[3:5])
        theirs = asked([stays], version, queries, k, KEYS[3:5])
        for (keys, products), (its_keys, its_products) in zip(mine, theirs, strict=True):
            assert keys.tolist() == its_keys.tolist()
            assert products.tobytes() == its_products.tobytes()
    assert ahead.index.name == stays.index.name != ""


def test_a_shard_remembers_the_newest_user_sides() -> None:
    [shard] = shards_of(1)
    filled([shard], 1)
    queries = np.ones((2, DIM), np.float32)
    asked([shard], VectorVersion("main", 0, 1, ITEMS), queries, 2, KEYS[:0])
    assert len(shard.queries) == 1


def test_a_replica_without_an_index_makes_vectors_when_asked() -> None:
    with_index, without = Replica(FEATURES, config()), Replica(FEATURES, config(), shards=2)
    for its in (with_index, without):
        its.apply_records([(item(n), n + 1) for n in range(ITEMS)])
        its.apply_step(step_of(1, range(0, ITEMS, 3)))
    some = np.array([5, 0, 9])
    assert with_index.vectors_of(some).tobytes() == without.vectors_of(some).tobytes()
    assert len(without.index) == 0 and not without.indexed and with_index.indexed
    assert len(without.index.search(np.ones(DIM, np.float32), 3, Bitmap(ITEMS))[0]) == 0
    fresh = without.prepare({}, None, ModelVersion("main", 1, 0))
    without.install(fresh)
    assert not without.indexed and replace(config().serve).retrieval_shards == 0
