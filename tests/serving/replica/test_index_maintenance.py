"""The index is looked after: made beside the one that answers, measured, and given its place in between."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recsys.config.system_config import Config, ServeConfig
from recsys.events.hashing import key_of
from serving.index import index_files
from serving.index.faiss_centroids import lists_for, sample_of, train
from serving.index.inverted_lists import Centroids
from serving.index.ivf_index import TARGET, IvfIndex, RecallMeasurement
from serving.replica.index_maintenance import IndexMaintenance, SetProbes, SwapIndex
from serving.replica.item_vectors import ModelVersion
from serving.replica.replica import Replica
from tests.support.power_cut import power_cut
from tests.support.serving.replica_harness import config, item, made, step_delta
from tests.support.serving.replica_rows import row_of

DIM = config().model.vector_dim


def its_config(**serve: object) -> Config:
    return replace(config(), serve=ServeConfig(**{"index_flat_items": 200} | serve))  # type: ignore[arg-type]


def care_of(replica: Replica) -> IndexMaintenance:
    return IndexMaintenance(replica, train, sample_of, lists_for)


def until(care: IndexMaintenance, kind: type, between: Callable[[int], None] = lambda n: None) -> None:
    """Turns until one comes to ``kind``, which is applied. ``between`` comes after each that has a say."""
    turns = 0
    for _ in range(20_000):
        found = care.turn()
        if found is None and care.replica.building is None:
            time.sleep(0.001)  # a thread trains
        else:
            between(turns)
            turns += 1
        if found is not None:
            care.apply(found)
        if isinstance(found, kind):
            return
    raise AssertionError(f"no {kind.__name__}")


def exact(replica: Replica) -> bool:
    """Whether every vector stands in the list of its nearest centroid, and those that are alive alone."""
    index = replica.index
    assert isinstance(index, IvfIndex)
    lists = index.lists.list_of(np.arange(len(index)))
    expected = np.where(replica.catalogue.alive, index.lists.centroids.assign(index.vectors), -1)
    return bool((lists == expected).all())


def test_few_items_are_looked_through_and_more_get_lists() -> None:
    few, many = made(items=200), made(items=201, its_config=its_config())
    assert not care_of(few).due and care_of(few).turn() is None and few.index.name == ""
    before = many.index.vectors.copy()
    until(care_of(many), SwapIndex)
    assert isinstance(many.index, IvfIndex) and exact(many) and many.building is None
    assert many.index.vectors.tobytes() == before.tobytes()
    fresh = many.prepare({}, None, ModelVersion("main", 1, 1)).index
    assert isinstance(fresh, IvfIndex) and exact(many)
    for kind, items, due in (("flat", 300, False), ("ivf", 100, True), ("ivf", 20, False)):
        assert care_of(made(items=items, its_config=its_config(index=kind))).due == due


def test_what_is_applied_while_an_index_is_made_is_in_it() -> None:
    """Publishes, moves and removes in every turn: the index that takes the place misses none of it."""
    replica = made(items=1_500, its_config=its_config())
    told = replica.catalogue_offset

    def live(turn: int) -> None:
        replica.apply_items(
            [item(1_500 + turn), item(turn, tags=["moved"]),
             item(9 + 7 * turn).__class__(time_ms=1, item_id=f"v{9 + 7 * turn}", removed=True)],
            told + 1 + turn,
        )  # fmt: skip
        replica.apply_step(row_of(f"v{turn * 3 % 1_500}", 0.3, replica.step + 1))

    until(care_of(replica), SwapIndex, live)
    assert exact(replica) and len(replica.catalogue) > 1_502
    alone = made(items=0, steps=0)
    alone.index = replica.index.empty()
    alone.index.set(np.arange(len(replica.index)), replica.index.vectors, replica.catalogue.alive)
    query = replica.index.vectors[3].copy()
    found = [r.index.search(query, 60, replica.catalogue.living) for r in (alone, replica)]
    assert found[0][0].tolist() == found[1][0].tolist()


def test_an_item_is_found_at_once_and_gone_at_once() -> None:
    replica = made(items=300, its_config=its_config())
    until(care_of(replica), SwapIndex)
    for n in (300, 301):
        replica.apply_items([item(n, author="somebody else")], n)
        query = replica.index.vectors[n].copy()
        assert n in replica.index.search(query, 40, replica.catalogue.living)[0]
        gone = item(n).__class__(time_ms=1, item_id=f"v{n}", removed=True)
        replica.apply_items([gone], n)
        assert n not in replica.index.search(query, 300, replica.catalogue.living)[0]
        replica.apply_step(row_of(f"v{n}", 9.0, replica.step + 1))  # and stays gone
        assert n not in replica.index.search(query, 300, replica.catalogue.living)[0]
    assert exact(replica)


def test_vectors_that_move_are_measured_and_looked_for_further_or_arranged_anew() -> None:
    replica = made(items=3_000, its_config=its_config())
    care = care_of(replica)
    until(care, SwapIndex)
    index = replica.index
    assert isinstance(index, IvfIndex) and care.recall >= TARGET and care.builds == 1
    probes, rng = index.probes, np.random.default_rng(0)
    assert probes < index.lists.centroids.count
    assert all(care.turn() is None for _ in range(40))  # nothing moved: nothing to do
    vectors = rng.standard_normal((400, DIM)).astype(np.float32)
    index.set(np.arange(400), vectors)
    until(care, SetProbes)
    assert replica.index is index and index.probes > probes and care.recall < 1
    for _ in range(3):
        index.set(np.arange(3_000), rng.standard_normal((3_000, DIM)).astype(np.float32))
    until(care, SwapIndex)
    assert replica.index is not index and care.builds == 2 and exact(replica)


def test_queries_of_requests_are_what_it_is_measured_with_once_there_are_enough() -> None:
    replica = made(items=400, its_config=its_config())
    care = care_of(replica)
    until(care, SwapIndex)
    queries = np.random.default_rng(1).standard_normal((32, DIM)).astype(np.float32)
    replica.queries.extend(queries)
    seen = []
    ranks = replica.index.ranks  # type: ignore[attr-defined]
    replica.index.ranks = lambda query, *more: seen.append(query) or ranks(query, *more)  # type: ignore[attr-defined]
    for _ in range(64):
        found = care.turn()
        if found is not None:
            care.apply(found)
    assert np.array(seen).tolist() == queries.tolist()


def test_the_fewest_lists_that_reach_the_target() -> None:
    measured = RecallMeasurement(np.zeros((2, 1)), [np.arange(50), np.array([0] * 50)], True)
    assert measured.probes(0.5) == 1 and measured.probes(1.0) == 50 and measured.probes(0.97) == 47
    for target in (0.6, 0.75, 0.97):
        probes = measured.probes(target)
        assert measured.recall(probes) >= target > measured.recall(probes - 1)
    assert RecallMeasurement(np.zeros((0, 1)), [], True).probes() == 1


def test_a_snapshot_that_comes_meanwhile_ends_what_is_made() -> None:
    replica, other = made(items=700, its_config=its_config()), made(items=700, steps=4)
    care = care_of(replica)
    while replica.building is None:
        care.turn()
    care.turn()
    tables = {name: store.export() for name, store in other.rows.items()}
    dense = other.model.read_dense()
    replica.install(replica.prepare(tables, dense, ModelVersion("main", 0, 4)))
    assert replica.building is None
    until(care, SwapIndex)
    assert exact(replica) and replica.index.vectors.tobytes() == other.index.vectors.tobytes()
    late = replica.index.empty()
    assert isinstance(late, IvfIndex)
    care.apply(SwapIndex(late))  # of before the snapshot
    assert replica.index is not late
    name = replica.index.name
    replica.install(replica.prepare(tables, dense, ModelVersion("main", 0, 4)))
    assert replica.index.name == name and exact(replica)  # with the lists that there were
    replica.apply_step(step_delta(replica, 5))
    assert exact(replica)


def test_an_index_that_cant_be_made_leaves_the_one_that_is() -> None:
    def broken(sample: np.ndarray, lists: int) -> None:
        raise RuntimeError("no memory")

    replica = made(items=300, its_config=its_config())
    care = IndexMaintenance(replica, broken, sample_of, lists_for)  # type: ignore[arg-type]
    assert care.build_now() is None and not care.due and replica.index.name == ""
    assert all(care.turn() is None for _ in range(5))


def test_the_newest_centroids_stay_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_files, "_KEPT", 3)
    vectors = np.eye(4, DIM, dtype=np.float32)
    for n in range(6):
        index = IvfIndex(Centroids(vectors + n), 1, 8)
        index_files.save_centroids(tmp_path, index)
        os.utime(tmp_path / f"{index.lists.centroids.digest}.safetensors", (n, n))
        assert index_files.index_named(tmp_path, index.name, DIM).name == index.name
    assert sorted(path.stat().st_mtime for path in tmp_path.iterdir()) == [3, 4, 5]


def test_centroids_on_disk_find_the_same_again(tmp_path: Path) -> None:
    replica = made(items=600, its_config=its_config())
    index = care_of(replica).build_now()
    assert index is not None and index is replica.building
    replica.swap(index)
    with power_cut(tmp_path):
        for _ in range(2):
            index_files.save_centroids(tmp_path, index)
    assert len(list(tmp_path.iterdir())) == 1
    again = index_files.index_named(tmp_path, index.name, DIM)
    again.set(np.arange(len(index)), index.vectors, replica.catalogue.alive)
    assert again.name == index.name
    query = index.vectors[int(key_of("item", "v1") % 600)].copy()
    found = [its.search(query, 50, replica.catalogue.living) for its in (index, again)]
    assert found[0][0].tolist() == found[1][0].tolist()
    assert found[0][1].tobytes() == found[1][1].tobytes()
    index_files.save_centroids(tmp_path, made().index)  # exact: nothing to keep
    assert index_files.index_named(tmp_path, "", DIM).name == ""
    for name in ("nothing-3", index.name + "x", index.name.split("-")[0], "../x-1"):
        with pytest.raises(ValueError, match="expected its centroids in"):
            index_files.index_named(tmp_path, name, DIM)
    with pytest.raises(ValueError, match="damaged"):
        index_files.index_named(tmp_path, index.name, DIM + 1)


def test_centroids_are_the_same_each_time_and_stand_numbers_that_are_none() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((500, DIM)).astype(np.float32)
    first, second = train(vectors, 32), train(vectors, 32)
    assert first.digest == second.digest and first.vectors.shape == (32, DIM)
    vectors[::2] = np.nan
    assert np.isfinite(train(vectors, 16).vectors).all()
    assert np.isfinite(train(vectors[:3], 4).vectors).all()
    assert [lists_for(n) for n in (1, 100, 10_000, 100_000, 1_000_000)] == [1, 12, 512, 1024, 4096]
    assert sample_of(np.arange(10), 1).tolist() == list(range(10))
    assert len(sample_of(np.arange(10_000), 2)) == 96
