"""The index that a stamp names is made again: of one shard, or of several, of which some gave no answer."""

from pathlib import Path

import numpy as np

from parameter_server.table.routing import shard_of
from plugins.answer_explanation.sharded_index import ShardedIndex, as_named
from serving.index import index_files
from serving.index.faiss_centroids import train
from serving.index.item_index import FlatIndex, sharded_name
from serving.index.ivf_index import IvfIndex
from serving.replica.replica import Replica
from tests.support.serving.replica_harness import item, made


def replica_of(items: int) -> Replica:
    """One that lacks an item that it had."""
    replica = made(items=items)
    gone = item(7).__class__(time_ms=1, item_id="v7", removed=True)
    replica.apply_items([gone], items)
    return replica


def test_an_index_that_has_the_name_is_taken_as_it_is(tmp_path: Path) -> None:
    replica = replica_of(60)
    index = IvfIndex(train(replica.index.vectors.copy(), 8), 2, replica.index.dim)
    index_files.save_centroids(tmp_path, index)
    again = as_named(tmp_path, index.name, replica.index, replica.catalogue)
    assert isinstance(again, IvfIndex) and again.vectors.tobytes() == replica.index.vectors.tobytes()
    for own, name in ((replica.index, ""), (again, index.name)):
        assert own.name == name
        assert as_named(tmp_path, name, own, replica.catalogue) is own
    index.set(np.arange(60), replica.index.vectors, replica.catalogue.alive)
    query = replica.index.vectors[3].copy()
    wanted = replica.catalogue.living
    hits = [each.search(query, 20, wanted)[0].tolist() for each in (index, again)]
    assert hits[0] == hits[1] and 7 not in hits[0]


def test_several_shards_find_together_what_one_finds_but_for_the_absent(tmp_path: Path) -> None:
    replica = replica_of(60)
    one, wanted = replica.index, replica.catalogue.living
    assert isinstance(one, FlatIndex)
    query = one.vectors[3].copy()
    items, products = one.search(query, 60, wanted)
    both = as_named(tmp_path, sharded_name(["", ""]), one, replica.catalogue)
    assert isinstance(both, ShardedIndex) and not both.missing and len(both) == 60
    merged_items, merged_products = both.search(query, 60, wanted)
    assert merged_items.tolist() == items.tolist() and len(items) == 59
    assert np.allclose(merged_products, products)
    second = as_named(tmp_path, sharded_name([None, ""]), one, replica.catalogue)
    assert isinstance(second, ShardedIndex) and second.missing
    is_there = shard_of(np.ascontiguousarray(replica.catalogue.keys[:, 0]), 2)[items] == 1
    assert second.search(query, 60, wanted)[0].tolist() == items[is_there].tolist()
