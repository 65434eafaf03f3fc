import hashlib
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from experiments.promotion.epoch_model import with_size
from parameter_server.publish.deltas import Changed, StepDelta
from recsys.events.control_records import ModelSize
from recsys.events.event_types import Item
from recsys.events.hashing import key_of
from recsys.events.records import ItemState
from recsys.features.feature_builder import FeatureBuilder
from recsys.features.feature_set import FeatureSet
from recsys.features.session import Session
from recsys.model.model import lookup_of, with_missing_row
from serving.replica.item_vectors import ModelVersion
from serving.replica.replica import Replica
from tests.support.serving.replica_harness import config, item, made, popular, step_delta
from tests.support.serving.replica_rows import DIM, row_of
from tests.support.serving.request_batches import batch_of
from tests.support.training.small_feed import FEATURES


def digest(replica: Replica) -> str:
    """Of all rows and dense parameters."""
    sha = hashlib.sha256(replica.model.read_dense().tobytes())
    for name in sorted(replica.rows):
        for column in replica.rows[name].export():
            sha.update(column.tobytes())
    return sha.hexdigest()


def load_from(replica: Replica, other: Replica, **version: object) -> None:
    tables = {name: store.export() for name, store in other.rows.items()}
    loaded = other.version._replace(**version)  # type: ignore[arg-type]
    replica.install(replica.prepare(tables, other.model.read_dense(), loaded))


def test_steps_applied_and_a_snapshot_loaded_are_the_same_version() -> None:
    stepped, loaded = made(steps=5), made(steps=0)
    load_from(loaded, stepped)
    assert digest(loaded) == digest(stepped) and loaded.version == stepped.version
    assert loaded.index.vectors.tobytes() == stepped.index.vectors.tobytes()
    for replica in (stepped, loaded):
        replica.apply_step(step_delta(replica, 6))
    assert digest(loaded) == digest(stepped)
    assert loaded.index.vectors.tobytes() == stepped.index.vectors.tobytes()


def test_a_model_of_another_size_takes_the_place_of_what_answers_at_once() -> None:
    usual = made(steps=3)
    small = with_size(config(), ModelSize(dim=2, hidden=(4,)))
    other = made(steps=5, its_config=small)
    tables = {name: store.export() for name, store in other.rows.items()}
    kept = digest(usual)
    fresh = usual.prepare(tables, other.model.read_dense(), ModelVersion("main", 1, 5), model=small.model)
    assert digest(usual) == kept and usual.model.config == config().model  # nothing is changed yet
    usual.install(fresh)
    assert usual.model.config == small.model and digest(usual) == digest(other)
    assert usual.index.vectors.tobytes() == other.index.vectors.tobytes()
    for replica in (usual, other):
        replica.apply_step(step_delta(other, 6))
    assert digest(usual) == digest(other)
    # Of an epoch whose snapshot can't be read nothing of the model before may stay.
    usual.install(usual.prepare({}, None, ModelVersion("main", 2, 0), model=config().model))
    assert digest(usual) == digest(made(steps=0))


def test_a_snapshot_replaces_everything_that_was_there() -> None:
    fresh, other = made(steps=0), made(steps=9)
    load_from(other, fresh, line="cand-1", epoch=2, step=4)
    assert other.version == ("cand-1", 2, 4) and digest(other) == digest(fresh)
    assert other.index.vectors.tobytes() == fresh.index.vectors.tobytes()
    other.apply_step(step_delta(other, 5))  # and goes on from there
    assert other.step == 5


def test_what_is_prepared_changes_nothing_until_it_is_taken() -> None:
    replica, other = made(steps=2), made(steps=9)
    before, vectors, version = digest(replica), replica.index.vectors.copy(), replica.version
    tables = {name: store.export() for name, store in other.rows.items()}
    dense = other.model.read_dense()
    fresh = replica.prepare(tables, dense, ModelVersion("main", 0, 9))
    assert (digest(replica), replica.version) == (before, version)
    assert replica.index.vectors.tobytes() == vectors.tobytes()
    replica.install(fresh)
    assert digest(replica) == digest(other) != before
    late = replica.prepare(tables, dense, ModelVersion("main", 0, 9))
    replica.apply_item(item(50), 41)
    with pytest.raises(AssertionError):  # it would have no vector for the new item
        replica.install(late)


def test_a_step_never_goes_back() -> None:
    replica = made(steps=3)
    before = digest(replica)
    for step in (1, 3):
        with pytest.raises(ValueError, match=f"step {step} came after 3"):
            replica.apply_step(step_delta(replica, step))
    assert digest(replica) == before and replica.step == 3


def test_a_row_that_left_has_its_initial_value_and_the_item_its_content_again() -> None:
    replica, fresh = made(steps=1), made(steps=0)
    keys = {n: replica.rows[n].export()[0] for n in replica.rows}
    tables = {
        name: Changed(np.empty(0, np.int64), np.zeros((0, store.config.dim), np.float32), keys[name])
        for name, store in replica.rows.items()
    }
    replica.apply_step(StepDelta(2, 0, tables, None, {}))
    assert all(len(store) == 0 for store in replica.rows.values())
    for name, store in replica.rows.items():
        assert (store.lookup(keys[name]) == fresh.rows[name].lookup(keys[name])).all()
    assert replica.index.vectors.tobytes() == fresh.index.vectors.tobytes()


def test_a_vector_is_the_same_whether_the_item_or_its_row_came_first() -> None:
    row_first, item_first = made(items=3, steps=0), made(items=3, steps=0)
    row_first.apply_step(row_of("v9", 0.5, 1))
    row_first.apply_item(item(9), 4)
    item_first.apply_item(item(9), 4)
    key = item_first.catalogue.keys[3, :1].copy()
    content = item_first.index.vectors[3] - item_first.rows["items"].lookup(key)[0]
    item_first.apply_step(row_of("v9", 0.5, 1))
    assert row_first.index.vectors.tobytes() == item_first.index.vectors.tobytes()
    np.testing.assert_allclose(item_first.index.vectors[3], content + 0.5, atol=1e-6)


def test_a_new_item_starts_from_its_own_vector_too_as_it_is_learned() -> None:
    schema = replace(FEATURES.schema, vectors=(("image", 3),))
    for kind, differs in (("all", True), ("ids", False)):  # examples of ids don't carry it
        features = FeatureSet(schema, kind, history=4)
        replica = made(0, 0, features)
        replica.apply_items([item(1), item(2, image=[1.0, 2.0, -1.0])], 2)
        plain = made(3, 0).index.vectors.copy()
        moved = np.abs(replica.index.vectors - plain[[1, 2]]).max(1)
        assert moved[0] == 0.0 and (moved[1] > 0.01) == differs
        request = FeatureBuilder(features).build(
            Session("u", features), "feed", {}, np.arange(2), replica.catalogue, replica.counters, 0
        )
        batch = batch_of(features, [request])
        lookup = lookup_of(batch)
        rows = with_missing_row(replica.rows["items"].lookup(lookup.keys["items"]))
        learned = replica.model.item_vectors(batch, lookup, rows).detach().numpy()
        np.testing.assert_allclose(learned, replica.index.vectors, atol=1e-6)


def test_only_the_vectors_of_moved_rows_move() -> None:
    replica = made(steps=1)
    before = replica.index.vectors.copy()
    replica.apply_step(row_of("v7", 9.0, 2))
    moved = (replica.index.vectors != before).any(1)
    assert np.flatnonzero(moved).tolist() == [7]


def test_a_changed_item_leaves_its_groups_and_its_place() -> None:
    replica = made()
    old, new = key_of("item.tags", "t3"), key_of("item.tags", "other")
    before = replica.index.vectors[3].copy()
    replica.apply_item(item(3, tags=["other"]), 41)
    assert 3 not in replica.groups.members(old) and replica.groups.members(new).tolist() == [3]
    assert (replica.index.vectors[3] != before).any() and replica.catalogue_offset == 41
    replica.apply_item(item(3), 42)
    assert replica.index.vectors[3].tobytes() == before.tobytes()
    assert replica.groups.members(new).tolist() == [] and 3 in replica.groups.members(old)


def test_a_removed_item_leaves_its_groups_and_may_come_back() -> None:
    replica = made()
    author = key_of("item.author", "a3")
    assert replica.groups.members(author).tolist() == [3, 12, 21, 30, 39]
    for removal in range(2):  # twice is as once
        replica.apply_item(Item(time_ms=1, item_id="v3", removed=True), 41 + removal)
    assert not replica.catalogue.alive[3] and 3 not in replica.groups.members(author)
    replica.apply_item(item(3), 43)
    assert replica.catalogue.alive[3] and 3 in replica.groups.members(author)


def test_an_item_published_again_keeps_its_place_in_groups_that_it_stays_in() -> None:
    replica = made()
    author, moves = key_of("item.author", "a3"), replica.groups.moves
    replica.apply_items([item(n, duration_ms=9_000) for n in range(40)], 80)
    assert replica.groups.moves == moves and not replica.surplus.moves
    assert replica.groups.members(author).tolist() == [3, 12, 21, 30, 39]
    replica.apply_item(item(3, tags=["other"]), 81)
    assert replica.groups.members(author).tolist() == [12, 21, 30, 39, 3]
    fields = item(3).fields | {"tags": ["a", "b", "c", "d", "fifth"]}  # more than it has columns
    many = Item(time_ms=1, item_id="v3", fields=fields)
    replica.apply_items([many, many], 83)
    assert replica.surplus.moves == 1
    assert replica.surplus.members(key_of("item.tags", "fifth")).tolist() == [3]


def test_an_unknown_item_that_is_removed_is_never_shown() -> None:
    replica = made(items=2)
    replica.apply_item(Item(time_ms=1, item_id="nobody", removed=True), 3)
    assert replica.catalogue.alive.tolist() == [True, True, False] and len(replica.index) == 3
    replica.apply_step(row_of("nobody", 1.0, 2))
    assert replica.step == 2


def test_many_items_at_once_are_as_one_after_the_other() -> None:
    items = [item(n % 30, tags=[f"t{n % 4}"]) for n in range(50)]
    items[40] = Item(time_ms=1, item_id="v5", removed=True)
    one, many = made(items=0, steps=0), made(items=0, steps=0)
    for n, its in enumerate(items):
        one.apply_item(its, n + 1)
    many.apply_items(items, 50)
    assert one.index.vectors.tobytes() == many.index.vectors.tobytes()
    assert one.catalogue.alive.tolist() == many.catalogue.alive.tolist()
    for tag in range(4):
        key = key_of("item.tags", f"t{tag}")
        assert one.groups.members(key).tolist() == many.groups.members(key).tolist()
    assert one.catalogue_offset == many.catalogue_offset == 50
    many.apply_items([], 50)


def test_item_state_set_twice_does_no_harm() -> None:
    once, twice = made(), made()
    for replica, times in ((once, 1), (twice, 2)):
        for _ in range(times):
            popular(replica, {3: 2, 4: 5})
    keys = once.counters.export()[0]
    now_ms = 2_000_000_000_000
    assert once.counters.read(keys, now_ms).tobytes() == twice.counters.read(keys, now_ms).tobytes()
    assert once.popularity.top.tolist() == twice.popularity.top.tolist() == [4, 3]
    empty = ItemState(offsets=[2], keys=b"", values=b"", last_ms=b"")
    once.apply_item_state(msgspec.structs.replace(empty), 7)
    assert once.item_state_offset == 7 and once.popularity.top.tolist() == [4, 3]


def test_a_replica_without_items_takes_steps() -> None:
    replica = Replica(FEATURES, config())
    replica.apply_step(row_of("v1", 1.0, 1))
    assert replica.step == 1 and len(replica.index) == 0


def columns(replica: Replica) -> list[int]:
    """Where all that grows lies."""
    counters, catalogue = replica.counters, replica.catalogue
    found = [*counters.arrays, catalogue._keys, catalogue._by_key.index, replica.popularity._values]
    for store in replica.rows.values():
        found += [store._values, store._ids.index, store._ids._keys]
    return [column.__array_interface__["data"][0] for column in found]


def test_nothing_grows_while_a_batch_is_applied_for_which_room_was_made() -> None:
    replica = made(items=40, steps=1)
    for n in range(6):
        more = [item(1_000 * (n + 1) + k) for k in range(300 * (n + 1))]
        keys = np.array([key_of("item", one.item_id) for one in more])
        values = np.ones((len(keys), replica.counters.columns), np.float32)
        state = ItemState(offsets=[], keys=keys.tobytes(), values=values.tobytes(), last_ms=keys.tobytes())
        rows = np.ones((len(keys), DIM), np.float32)
        changed = {"users": Changed(keys, rows, keys[:0]), "items": Changed(keys, rows, keys[:0])}
        step = StepDelta(replica.step + 1, 0, changed, None, {})
        before = columns(replica)
        replica.make_room_for_items(len(more))
        replica.make_room_for_counters(len(keys))
        replica.make_room_for_steps([step])
        if n == 0:
            assert columns(replica) != before
        room = columns(replica)
        replica.apply_items(more, 100 * n)
        replica.apply_item_state(state, n)
        replica.apply_step(step)
        assert columns(replica) == room
