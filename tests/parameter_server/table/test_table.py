import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from parameter_server.table import kernels
from parameter_server.table.kernels import EPSILON
from parameter_server.table.table import Table, digest_of_exports, initial_rows, table_seed
from recsys.arrays.id_map import IdMap
from recsys.arrays.key_index import AHEAD
from recsys.config.system_config import TableConfig
from recsys.events.hashing import splitmix64, uniforms

PLAIN = TableConfig("t", 3, 0.1, initial=0.5)


def ids(*values):
    return np.array(values, np.int64)


def ones(count):
    return np.ones(count, np.int32)


def clashing(count):
    """Keys that all want the last cell of an index of up to 32."""
    keys = np.arange(400 * count, dtype=np.int64)
    low_half = splitmix64(keys.view(np.uint64)) & np.uint64(0xFFFF_FFFF)
    return keys[low_half >= np.uint64(31 << 27)][:count]


# A handful of keys with clashes in the last cell (so that probing wraps) and the extremes of int64.
POOL = [*clashing(12).tolist(), 0, -1, 1, 2**63 - 1, -(2**63), 77, 1 << 40]


class IdMapMachine(RuleBasedStateMachine):
    """The map against a dict, with one column beside it."""

    def __init__(self):
        super().__init__()
        self.map, self.oracle = IdMap(), {}
        self.column, self.next = np.zeros(64, np.int64), 1

    @rule(keys=st.lists(st.sampled_from(POOL), max_size=6))
    def insert(self, keys):
        slots = self.map.insert(ids(*keys))
        for key, slot in zip(keys, slots.tolist(), strict=True):
            if key not in self.oracle:
                self.oracle[key] = self.column[slot] = self.next
                self.next += 1

    @rule(keys=st.sets(st.sampled_from(POOL), max_size=8))
    def remove(self, keys):
        there = [key for key in keys if key in self.oracle]
        self.map.remove(self.map.find(ids(*there))).apply(self.column)
        for key in there:
            del self.oracle[key]

    @invariant()
    def same_as_the_dict(self):
        assert len(self.map) == len(self.oracle)
        assert sorted(self.map.keys.tolist()) == sorted(self.oracle)
        slots = self.map.find(ids(*POOL))
        found = {k: s for k, s in zip(POOL, slots.tolist(), strict=True) if s >= 0}
        assert sorted(found.values()) == list(range(len(self.oracle)))  # no two ids on one row
        assert {key: self.column[slot] for key, slot in found.items()} == self.oracle
        assert not self.column[len(self.map) :].any()


TestIdMap = IdMapMachine.TestCase
TestIdMap.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


class TableMachine(RuleBasedStateMachine):
    """A table with admission and a time-to-live, against a dict of rows. No two keys of the pool share a
    block of the sketch, so it counts exactly."""

    config = TableConfig("t", 2, 0.1, initial=0.3, admit_after=3, ttl_s=10, sketch_mb=0.3)

    def __init__(self):
        super().__init__()
        self.table = Table(self.config, 5)
        self.rows, self.seen, self.now_ms = {}, {}, 100_000

    def initial(self, key):
        return initial_rows(self.config, 5, ids(key))[0]

    @rule(
        batch=st.dictionaries(st.sampled_from(POOL), st.integers(1, 3), max_size=6),
        gradient=st.sampled_from([0.0, 0.5, -2.0, np.nan, np.inf, 1e6]),
        scale=st.sampled_from([1.0, 1e-6]),  # at the smaller one the root is near epsilon
        wait_ms=st.integers(0, 4000),
    )
    def apply(self, batch, gradient, scale, wait_ms):
        self.now_ms += wait_ms
        gradients = np.full((len(batch), 2), 0.25, np.float32)
        gradients[::2, 1] = gradient
        gradients *= np.float32(scale)
        counts = np.array(list(batch.values()), np.int32)
        changed, refused = [], 0
        for i, (key, count) in enumerate(batch.items()):
            if not (np.abs(gradients[i]) <= 1e3).all():
                refused += 1
                continue
            if key not in self.rows:
                seen, added = self.seen.get(key, (0, 0))
                seen, added = seen + count, added + count
                halved = added >= 16 * (3 - 1)
                self.seen[key] = (seen // 2, added // 2) if halved else (seen, added)
                if seen < 3:
                    continue
                self.rows[key] = (self.initial(key), np.float32(0), 0)
            changed.append(key)
            row, total, _ = self.rows[key]
            total = total + np.float32((gradients[i].astype(np.float64) ** 2).mean())
            row = row - np.float32(0.1) / (np.sqrt(total) + np.float32(EPSILON)) * gradients[i]
            self.rows[key] = (row, total, self.now_ms)
        done = self.table.apply(ids(*batch), gradients, counts, self.now_ms)
        assert done.keys.tolist() == changed and done.refused == refused

    @rule(wait_ms=st.integers(0, 15_000))
    def expire(self, wait_ms):
        self.now_ms += wait_ms
        old = self.now_ms - 10_000
        gone = sorted(key for key, (_, _, used) in self.rows.items() if used < old)
        assert self.table.stale(self.now_ms).tolist() == gone
        assert self.table.expire(self.now_ms, ids(*gone)).tolist() == gone
        for key in gone:
            del self.rows[key]

    @rule(keys=st.sets(st.sampled_from(POOL), max_size=3))
    def remove(self, keys):
        gone = sorted(key for key in keys if key in self.rows)
        assert self.table.remove(ids(*keys)).tolist() == gone
        for key in keys:
            self.rows.pop(key, None)

    @rule()
    def save_and_load(self):
        other = Table(self.config, 5)
        other.load(self.table.export())
        assert other.digest() == self.table.digest()
        self.table = other

    @invariant()
    def same_as_the_dict(self):
        assert len(self.table) == len(self.rows)
        assert self.table.waiting == sum(added for _, added in self.seen.values())
        rows = self.table.lookup(ids(*POOL))
        assert np.isfinite(rows).all()
        for key, row in zip(POOL, rows, strict=True):
            expected = self.rows[key][0] if key in self.rows else self.initial(key)
            np.testing.assert_allclose(row, expected, rtol=2e-6, atol=1e-7)


TestTable = TableMachine.TestCase
TestTable.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20), st.integers(0, 99))
def test_initial_rows_are_the_hash_of_seed_table_and_key(keys, seed):
    expected = (2 * uniforms(table_seed(seed, "t"), ids(*keys), 3) - 1) * 0.5
    assert (initial_rows(PLAIN, seed, ids(*keys)) == expected.astype(np.float32)).all()


def test_a_lookup_of_an_unknown_id_inserts_nothing():
    table = Table(PLAIN, 1)
    assert (table.lookup(ids(4, 5, 4)) == initial_rows(PLAIN, 1, ids(4, 5, 4))).all()
    assert len(table) == 0 and table.digest() == Table(PLAIN, 1).digest()
    other = initial_rows(TableConfig("u", 3, 0.1, initial=0.5), 1, ids(4))
    assert (other != table.lookup(ids(4))).all()


def test_one_update_by_hand():
    table = Table(TableConfig("t", 2, 0.5), 0)
    table.apply(ids(9), np.array([[3.0, 4.0]], np.float32), ones(1), 1)
    root = np.sqrt(12.5)  # the mean of 9 and 16
    np.testing.assert_allclose(table.lookup(ids(9))[0], [-1.5 / root, -2.0 / root], rtol=1e-6)


def test_epsilon_is_added_outside_the_root():
    table = Table(TableConfig("t", 2, 0.1), 0)
    table.apply(ids(9), np.full((1, 2), 1e-6, np.float32), ones(1), 1)
    np.testing.assert_allclose(table.lookup(ids(9))[0], -0.0990099, rtol=1e-5)  # 0.1 / 1.01


def test_a_poisoned_gradient_touches_its_own_row_only():
    table = Table(PLAIN, 0)
    keys, gradients = ids(1, 2, 3), np.ones((3, 3), np.float32)
    table.apply(keys, gradients, ones(3), 1)
    before = table.lookup(keys)
    gradients[1, 2] = np.nan
    done = table.apply(keys, gradients, ones(3), 2)
    after = table.lookup(keys)
    assert done.refused == 1 and done.keys.tolist() == [1, 3]
    assert (after[1] == before[1]).all() and (after[[0, 2]] != before[[0, 2]]).all()
    assert np.isfinite(table.export()["accumulator"]).all()


def test_an_expired_row_comes_back_as_new():
    config = TableConfig("t", 3, 0.1, initial=0.5, ttl_s=1)
    table, gradients = Table(config, 0), np.ones((2, 3), np.float32)
    table.apply(ids(1, 2), gradients, ones(2), 1000)
    table.apply(ids(2), gradients[:1], ones(1), 2001)
    assert not len(table.expire(2000, ids(1, 2, 3)))  # a second old, and no older
    assert table.expire(2001, ids(1, 2, 3)).tolist() == [1]
    assert (table.lookup(ids(1)) == initial_rows(config, 0, ids(1))).all()
    table.apply(ids(1), gradients[:1], ones(1), 3000)
    fresh = Table(config, 0)
    fresh.apply(ids(1), gradients[:1], ones(1), 3000)
    assert (table.lookup(ids(1)) == fresh.lookup(ids(1))).all()  # the accumulator began anew


def test_the_digest_knows_content_and_no_order():
    def filled(*batches):
        table = Table(PLAIN, 0)
        for batch in batches:
            table.apply(ids(*batch), np.ones((len(batch), 3), np.float32), ones(len(batch)), 7)
        return table

    one, other = filled([1, 2, 3]), filled([3], [1, 2])
    assert one.digest() == other.digest() != filled([1, 2, 4]).digest()
    assert digest_of_exports([filled([1]).export(), filled([3, 2]).export()]) == one.digest()
    for column in ("keys", "values", "accumulator", "used_ms"):
        changed = one.export()
        changed[column].flat[0] += 1
        assert digest_of_exports([changed]) != one.digest()


def test_a_row_takes_no_more_than_one_and_a_half_times_its_floats_whatever_the_number_of_rows():
    table, gradients = Table(TableConfig("t", 32, 0.1), 0), np.zeros((500, 32), np.float32)
    for start in range(0, 60_000, 500):
        table.apply(np.arange(start, start + 500), gradients, ones(500), 1)
        if start >= 5_000:
            assert table.nbytes <= 1.5 * 4 * 32 * len(table)


def test_memory_is_counted_as_it_is_written_to():
    table, gradients = Table(PLAIN, 0), np.ones((3_000, 3), np.float32)
    taken = []
    for start in range(0, 270_000, 3_000):
        table.apply(np.arange(start, start + 3_000), gradients, ones(3_000), 1)
        taken.append(table.nbytes)
    allocated = sum(column.nbytes for column in table._ids.columns.values())
    written = 270_000 * (3 * 4 + 4 + 8)
    assert allocated > 1.2 * written  # room that nothing stands in yet
    beside = table._ids.index.nbytes + 270_000 * 8
    assert written + beside <= taken[-1] <= written + beside + 4 * 4096
    table.remove(np.arange(200_000))
    assert table.nbytes == taken[-1]  # what was written once stays


def test_growth_keeps_everything():
    table = Table(PLAIN, 0)
    keys = np.arange(5_000) * 2**50 + 3
    for start in range(0, 5_000, 700):
        batch = keys[start : start + 700]
        table.apply(batch, np.ones((len(batch), 3), np.float32), ones(len(batch)), 1)
    assert len(table) == 5_000
    step = np.float32(0.1) / (np.float32(1) + np.float32(EPSILON))
    assert (table.lookup(keys) == initial_rows(PLAIN, 0, keys) - step).all()


def test_no_two_keys_of_the_pool_share_a_block_of_the_sketch():
    high_half = splitmix64(ids(*POOL).view(np.uint64)) >> np.uint64(32)
    assert len(set(((high_half * np.uint64(5040)) >> np.uint64(32)).tolist())) == len(POOL)


def test_gradients_of_another_dimension_are_named():
    with pytest.raises(ValueError, match=r"table t: gradients have shape \(2, 4\), expected \(2, 3\)"):
        Table(PLAIN, 0).apply(ids(1, 2), np.ones((2, 4), np.float32), ones(2), 1)


@pytest.mark.slow
def test_updates_are_fbgemm_s_row_wise_adagrad():
    ops = pytest.importorskip("fbgemm_gpu.split_table_batched_embeddings_ops_training")
    common = pytest.importorskip("fbgemm_gpu.split_table_batched_embeddings_ops_common")
    import torch

    rows, dim, rng = 50, 12, np.random.default_rng(0)
    tbe = ops.SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, dim, common.EmbeddingLocation.HOST, ops.ComputeDevice.CPU)],
        optimizer=ops.OptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=0.1,
        eps=EPSILON,
    )
    config = TableConfig("t", dim, 0.1, initial=0.5)
    table, every = Table(config, 0), np.arange(rows)
    weights = tbe.split_embedding_weights()[0]
    weights.data.copy_(torch.from_numpy(table.lookup(every)))
    for _ in range(20):
        keys = rng.choice(rows, 20, replace=False)
        gradients = rng.standard_normal((20, dim)).astype(np.float32)
        out = tbe(torch.from_numpy(keys), torch.arange(21))
        out.backward(torch.from_numpy(gradients))
        table.apply(keys, gradients, ones(20), 1)
    np.testing.assert_allclose(table.lookup(every), weights.detach().numpy(), atol=1e-5)


def test_a_thirty_second_of_a_full_table_leaves_at_once():
    table = Table(TableConfig("t", 2, 0.1, budget_mb=0.1), 0)
    for key in range(0, 20_000, 100):
        table.apply(np.arange(key, key + 100), np.ones((100, 2), np.float32), ones(100), key)
    assert table._limit // 32 > table._limit // 33  # so that the next smaller share would differ
    before = table._limit - len(table)
    full = ids(*range(50_000, 50_000 + before))
    table.apply(full, np.ones((before, 2), np.float32), ones(before), 30_000)
    assert len(table) == table._limit
    table.apply(ids(99_999), np.ones((1, 2), np.float32), ones(1), 30_001)
    assert len(table) == table._limit - table._limit // 32 + 1


def test_empty_slots_at_the_end_are_neither_fetched_nor_learned() -> None:
    rng, size = np.random.default_rng(3), 2 * AHEAD + 1
    values, gradients = (rng.standard_normal((size, 5)).astype(np.float32) for _ in range(2))
    slots = rng.permutation(size)
    slots[-AHEAD::2] = -1
    rows = [kernels.prefetch_row(values, slots, i) for i in range(size + AHEAD)]
    assert rows == [*(slots >= 0).tolist(), *[False] * AHEAD]
    learned, accumulator, used = values.copy(), np.zeros(size, np.float32), np.zeros(size, np.int64)
    kernels.adagrad(learned, accumulator, used, slots, gradients, 0.1, EPSILON, 7)
    for i, slot in enumerate(slots.tolist()):  # one by one: nothing is ahead
        one, row = slots[i : i + 1], gradients[i : i + 1]
        rest = np.zeros(size, np.float32), np.zeros(size, np.int64)
        kernels.adagrad(values, *rest, one, row, 0.1, EPSILON, 7)
        assert slot < 0 or (accumulator[slot], used[slot]) == (rest[0][slot], 7)
    assert learned.tobytes() == values.tobytes()
    assert (used > 0).sum() == (slots >= 0).sum()
