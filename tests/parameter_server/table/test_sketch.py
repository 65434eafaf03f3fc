import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parameter_server.table.routing import shard_of
from parameter_server.table.sketch import BLOCK_UNIT, Sketch, blocks_of
from parameter_server.table.table import Table
from recsys.config.system_config import TableConfig


def ones(count):
    return np.ones(count, np.int32)


def some_keys(count, seed=0):
    return np.random.default_rng(seed).integers(-(2**63), 2**63 - 1, count, dtype=np.int64)


@given(st.lists(st.integers(0, 60), max_size=300), st.integers(2, 9))
@settings(max_examples=60, deadline=None)
def test_who_was_seen_often_enough_is_never_told_otherwise(order, enough):
    """One-sided, while no block is halved: an estimate is at least the true count."""
    keys, sketch, true = some_keys(61), Sketch(1, BLOCK_UNIT, enough), np.zeros(61, int)
    sketch._window = 1 << 30
    for one in order:
        true[one] += 1
        said = sketch.see(keys[one : one + 1], ones(1))[0]
        assert said or true[one] < enough


@pytest.mark.parametrize("enough", [2, 3, 10])
def test_ids_seen_once_are_rarely_taken_for_more_however_many_come(enough):
    sketch, before, early = Sketch(1, BLOCK_UNIT, enough), 0, 0
    before = sketch.nbytes
    for seed in range(60):  # a million ids, 200 for each block
        early += int(sketch.see(some_keys(16_800, seed), ones(16_800)).sum())
    assert early < 0.07 * 60 * 16_800 and sketch.nbytes == before


def test_who_comes_again_soon_is_seen_among_many_who_come_once():
    sketch, again = Sketch(1, BLOCK_UNIT, 3), some_keys(500, 99)
    said = []
    for seed in range(6):
        said.append(sketch.see(again, ones(500)).mean())
        sketch.see(some_keys(10_000, seed), ones(10_000))
    assert said[0] == 0 and said[1] < 0.05 and said[2] > 0.95


def test_the_keys_of_another_shard_write_nowhere_else():
    sketch = Sketch(0, BLOCK_UNIT, 2, 1, 2)
    sketch.see(some_keys(10_000), ones(10_000))
    assert sketch.sightings == 10_000  # none fell outside, none made a block full


def test_counts_decay():
    sketch, one = Sketch(1, BLOCK_UNIT, 2), some_keys(1)
    sketch.see(one, ones(1))
    for seed in range(30):  # 16 sightings a block, and it is halved
        sketch.see(some_keys(BLOCK_UNIT, seed + 1), ones(BLOCK_UNIT))
    assert sketch.sightings < 16 * BLOCK_UNIT
    table = {key: sketch.see(np.array([key]), ones(1))[0] for key in one.tolist()}
    assert not any(table.values())


def test_a_seed_chooses_other_clashes():
    def early(seed):
        sketch = Sketch(seed, BLOCK_UNIT, 2)
        return np.concatenate([sketch.see(some_keys(10_000, n), ones(10_000)) for n in range(5)])

    assert (early(1) == early(1)).all() and (early(1) != early(2)).any()


@pytest.mark.parametrize("parts", [2, 3, 4, 7, 9, 16])
def test_any_number_of_shards_counts_the_same(parts):
    whole = Sketch(5, BLOCK_UNIT, 2)
    shards = [Sketch(5, BLOCK_UNIT, 2, part, parts) for part in range(parts)]
    for seed in range(8):
        keys = np.concatenate([some_keys(9_000, seed), some_keys(9_000, seed // 2)])
        said, owner = whole.see(keys, ones(18_000)), shard_of(keys, parts)
        for part, shard in enumerate(shards):
            assert (shard.see(keys[owner == part], ones((owner == part).sum())) == said[owner == part]).all()
    exports = [shard.export() for shard in shards]
    assert (np.concatenate([e["sketch_cells"] for e in exports]) == whole.export()["sketch_cells"]).all()
    again = [Sketch(5, BLOCK_UNIT, 2, part, 5) for part in range(5)]
    for sketch in again:
        for export in exports:
            sketch.load(export)
    assert (np.concatenate([s.export()["sketch_cells"] for s in again]) == whole._cells).all()
    assert sum(s.sightings for s in again) == whole.sightings > 0


def test_a_sketch_of_another_size_begins_anew():
    sketch, other = Sketch(5, BLOCK_UNIT, 2), Sketch(5, 2 * BLOCK_UNIT, 2)
    sketch.see(some_keys(100), ones(100))
    other.load(sketch.export())
    assert other.sightings == 0 < sketch.sightings


def test_a_number_of_shards_that_would_share_a_block_is_refused():
    with pytest.raises(ValueError, match="parts is 11, expected a divisor of 5040.*use 8, 16"):
        Sketch(0, BLOCK_UNIT, 2, 0, 11)


def test_a_block_s_bytes_are_as_configured():
    for mb in (0.5, 1, 7, 64):
        assert abs(Sketch(0, blocks_of(mb), 2).nbytes / (mb * 2**20) - 1) < 0.35
    assert abs(Sketch(0, blocks_of(64), 2).nbytes / (64 * 2**20) - 1) < 0.01


def test_ids_seen_once_cost_a_table_nothing():
    table, gradients = (Table(TableConfig("t", 4, 0.1, admit_after=5), 0), np.ones((9_000, 4), np.float32))
    empty = Table(TableConfig("t", 4, 0.1, admit_after=5), 0).nbytes
    for seed in range(20):
        table.apply(some_keys(9_000, seed), gradients, ones(9_000), seed)
    assert len(table) <= 20 and table.nbytes <= empty + 4096


def test_counts_go_through_an_export_and_into_the_digest():
    config, key, row = (TableConfig("t", 4, 0.1, admit_after=2), some_keys(1), np.ones((1, 4), np.float32))
    table, other = Table(config, 0), Table(config, 0)
    table.apply(key, row, ones(1), 1)
    assert len(table) == 0 and table.digest() != other.digest()
    other.load(table.export())
    assert table.digest() == other.digest()
    assert other.apply(key, row, ones(1), 2).inserted == 1
