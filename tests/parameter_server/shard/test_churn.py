"""Far more ids than memory: what a budget keeps, what leaves, and that everyone hears of it."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from parameter_server.publish.deltas import DeltaAssembler, Gap, to_arrays
from parameter_server.shard.lanes import LaneGradients, RowGradients
from parameter_server.shard.shard import Shard, ShardSpec
from parameter_server.table.kernels import EPSILON
from parameter_server.table.table import Table, initial_rows, rows_within
from recsys.arrays.key_index import LOAD
from recsys.config.system_config import TableConfig
from recsys.events.records import pack
from serving.replica.row_store import RowStore


def ids(*values):
    return np.array(values, np.int64)


def ones(count):
    return np.ones(count, np.int32)


def budget_for(rows, dim):
    """MiB that hold just so many rows."""
    mb = rows * (4 * dim + 20 + 16 / LOAD) / 2**20 + 1e-9
    assert rows_within(mb, dim) == rows
    return mb


def learn(shard, step, keys, table="t", gradient=1.0, **more):
    dim = shard.spec.dims[table]
    rows = RowGradients(keys, np.full((len(keys), dim), gradient, np.float32), ones(len(keys)))
    return shard.learn(step, 1000 * step, [LaneGradients(0, {table: rows}, **more)])


class Lru(RuleBasedStateMachine):
    """A table that holds 12 rows, against a dict that drops what was used least recently, by (time, key)."""

    config = TableConfig("t", 2, 0.1, initial=0.3, budget_mb=budget_for(12, 2))

    def __init__(self):
        super().__init__()
        self.table, self.rows, self.now_ms = Table(self.config, 5), {}, 0

    @rule(batch=st.sets(st.integers(-20, 20), max_size=16), wait_ms=st.integers(0, 1))
    def apply(self, batch, wait_ms):
        self.now_ms += wait_ms
        keys = list(batch)
        new = [key for key in keys if key not in self.rows]
        used = sorted((row[2], key) for key, row in self.rows.items() if key not in batch)
        leaving = sorted(key for _, key in used[: max(0, len(self.rows) + len(new) - 12)])
        left = {key: self.rows.pop(key)[0] for key in leaving}
        for key in new[: 12 - len(self.rows)]:
            self.rows[key] = (initial_rows(self.config, 5, ids(key))[0], 0.0, 0)
        for key in keys:
            if key in self.rows:
                row, count, _ = self.rows[key]
                row = row - 0.1 / (np.sqrt(count + 1) + EPSILON)
                self.rows[key] = (row, count + 1, self.now_ms)
        done = self.table.apply(ids(*keys), np.ones((len(keys), 2), np.float32), ones(len(keys)), self.now_ms)
        assert done.evicted.tolist() == leaving
        np.testing.assert_allclose(done.evicted_rows, np.reshape(list(left.values()), (-1, 2)), atol=1e-5)
        assert done.keys.tolist() == [key for key in keys if key in self.rows]

    @rule()
    def save_and_load(self):
        other = Table(self.config, 5)
        other.load(self.table.export())
        assert other.digest() == self.table.digest()
        self.table = other

    @invariant()
    def same_as_the_dict(self):
        export = self.table.export()
        assert sorted(export["keys"].tolist()) == sorted(self.rows)  # each id has one row, none has two
        for key, values, total in zip(
            export["keys"].tolist(), export["values"], export["accumulator"], strict=True
        ):
            np.testing.assert_allclose(values, self.rows[key][0], atol=1e-5)
            assert total == self.rows[key][1]


TestLru = Lru.TestCase
TestLru.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@pytest.mark.slow
def test_a_hundred_times_more_ids_than_the_budget_holds():
    """Memory stays, no id learns from another's gradients, and a replica has just the rows of the shard."""
    config = TableConfig("t", 16, 0.5, initial=0.1, budget_mb=1)
    shard = Shard(ShardSpec((config,), 1, seed=3))
    assembler, store, limit = DeltaAssembler("main", 0, 0), RowStore(config, 3), rows_within(1, 16)
    draw, hot, came, step = np.random.default_rng(0), np.arange(500) * 2**40 - 7, 0, 0
    sightings = {}  # of the rows that there are: what each must have learned
    while came < 100 * limit:
        step += 1
        fresh = np.unique(draw.integers(-(2**63), 2**63 - 1, 3_000, dtype=np.int64))
        keys, came = np.concatenate([fresh, hot]), came + len(fresh)
        delta = learn(shard, step, keys)
        for key in to_arrays(delta)["t"].removed.tolist():
            del sightings[key]
        for key in keys.tolist():
            sightings[key] = sightings.get(key, 0) + 1
        steps = assembler.feed(pack(delta))
        assert not isinstance(steps, Gap)
        for found in steps:
            store.set(*found.tables["t"][:2])
            store.remove(found.tables["t"].removed)
        assert shard.nbytes <= 1.05 * 2**20
        if came > 2 * limit:
            assert shard.nbytes >= 0.95 * 2**20 and len(shard.tables["t"]) >= 0.95 * limit
    export = shard.tables["t"].export()
    assert sorted(export["keys"].tolist()) == sorted(sightings) and set(hot.tolist()) <= set(sightings)
    counts = np.array([sightings[key] for key in export["keys"].tolist()])
    assert (export["accumulator"] == counts).all()
    harmonic = np.cumsum(1 / np.sqrt(np.arange(1, step + 1)))
    expected = initial_rows(config, 3, export["keys"]) - 0.5 * harmonic[counts - 1][:, None]
    np.testing.assert_allclose(export["values"], expected, rtol=1e-4, atol=1e-4)
    assert shard.counters.evicted == came + 500 - len(sightings)
    order = np.argsort(export["keys"])
    keys, values = store.export()
    assert (keys == export["keys"][order]).all() and (values == export["values"][order]).all()


def test_what_is_counted_is_what_is_allocated():
    config, gradients = (
        TableConfig("t", 8, 0.5, budget_mb=4, admit_after=2),
        np.ones((2_000, 8), np.float32),
    )
    tracemalloc.start()
    try:
        table = Table(config, 0)
        for step in range(80):
            keys = np.arange(step * 1_000, step * 1_000 + 2_000)  # each in two steps
            table.apply(keys, gradients, ones(2_000), step)
        del keys
        allocated = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(table) > 20_000
    assert abs(allocated / (4 * 2**20) - 1) < 0.05 and abs(table.nbytes / allocated - 1) < 0.02


def test_rows_leave_in_batches():
    config = TableConfig("t", 2, 0.5, budget_mb=budget_for(640, 2))
    table = Table(config, 0)
    table.apply(np.arange(640), np.ones((640, 2), np.float32), ones(640), 1)
    done = table.apply(ids(1000), np.ones((1, 2), np.float32), ones(1), 2)
    assert done.evicted.tolist() == list(range(20)) and len(table) == 621


def test_an_evicted_row_takes_its_optimizer_state_along():
    config, row = (
        TableConfig("t", 2, 0.5, initial=0.1, budget_mb=budget_for(3, 2)),
        np.ones((1, 2), np.float32),
    )
    table, fresh = Table(config, 0), Table(config, 0)
    for now, key in enumerate([1, 1, 2, 3, 4, 1]):
        table.apply(ids(key), row, ones(1), now)
    fresh.apply(ids(1), row, ones(1), 0)
    assert (table.lookup(ids(1)) == fresh.lookup(ids(1))).all()
    assert sorted(table.export()["keys"].tolist()) == [1, 3, 4]


@pytest.mark.parametrize("newest", range(2, 14))
def test_one_step_back_is_what_it_was_over_an_eviction(newest):
    tables = (TableConfig("t", 2, 0.5, initial=0.1, budget_mb=budget_for(9, 2), ttl_s=5),)

    def learned(until):
        shard = Shard(ShardSpec(tables, 1, expire_every=4))
        for step in range(1, until + 1):
            forget = {"t": np.arange(5 * step - 9, 5 * step - 7)} if step % 3 == 0 else {}
            learn(shard, step, np.arange(5 * step, 5 * step + 6) % 37, forget=forget)
        return shard

    before, after, keys = learned(newest - 1), learned(newest), {"t": np.arange(40)}
    now, then = before.lookup(newest - 1, keys)["t"], after.lookup(newest - 1, keys)["t"]
    assert (now == then).all() and (after.lookup(newest, keys)["t"] != then).any()
    assert newest < 3 or after.counters.evicted > 0


def test_replay_from_a_snapshot_evicts_the_same_rows():
    budget_mb = budget_for(50, 2) + 5040 * 68 / 2**20
    config = TableConfig("t", 2, 0.5, 0.1, admit_after=2, budget_mb=budget_mb, sketch_mb=0.3)
    spec, draw = ShardSpec((config,), 1), np.random.default_rng(1)
    batches = [np.unique((400 * draw.random(40) ** 2).astype(np.int64)) for _ in range(60)]
    straight, stopped, again = Shard(spec), Shard(spec), Shard(spec)
    deltas = [learn(straight, step, keys) for step, keys in enumerate(batches, 1)]
    for step, keys in enumerate(batches[:30], 1):
        learn(stopped, step, keys)
    arrays, meta = stopped.export()
    again.load([arrays], meta)
    for step, keys in enumerate(batches[30:], 31):
        assert learn(again, step, keys) == deltas[step - 1]
    assert again.digest() == straight.digest() and straight.counters.evicted > 20


def test_a_lower_budget_takes_effect_with_the_next_step_and_is_published():
    config = TableConfig("t", 16, 0.5, budget_mb=2)
    shard = Shard(ShardSpec((config,), 1))
    learn(shard, 1, np.arange(15_000))
    lower = Shard(ShardSpec((replace(config, budget_mb=1),), 1))
    lower.load([shard.export()[0]], shard.export()[1])
    assert lower.nbytes > 1.3 * 2**20
    removed = to_arrays(learn(lower, 2, np.arange(100)))["t"].removed
    assert 0.9 * 2**20 < lower.nbytes <= 1.05 * 2**20 and len(lower.tables["t"]) == 15_000 - len(removed)


def test_a_budget_that_holds_no_row_is_refused():
    with pytest.raises(ValueError, match="budget_mb is 0.5, expected more than 0.981.*raise budget_mb"):
        Table(TableConfig("t", 2, 0.5, admit_after=2, budget_mb=0.5), 0)
    with pytest.raises(ValueError, match="budget_mb is -1"):
        TableConfig("t", 2, 0.5, budget_mb=-1)
