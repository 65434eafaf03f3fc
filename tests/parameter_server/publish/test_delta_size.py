"""No step sends more than one record of a log holds: what is too much goes with later steps."""

import numpy as np
import pytest

from parameter_server.publish import published
from parameter_server.publish.deltas import to_arrays
from parameter_server.publish.published import KEY_BYTES
from parameter_server.rpc.parameter_client import LocalClient
from parameter_server.shard.lanes import LaneGradients
from parameter_server.table import table as rows
from parameter_server.table.table import Table
from recsys.config.system_config import TableConfig
from recsys.log.protocol import check_appends
from tests.support.parameter_server.small_line import DENSE, LANES, TABLES, toy_spec, work


def ids(*keys):
    return np.array(keys, np.int64)


def size(delta):
    return sum(len(t.keys) + len(t.values) + len(t.removed) for t in delta.tables)


@pytest.mark.parametrize("budget", [0, 60])
def test_a_step_that_settles_sends_no_more_and_the_rest_follows(monkeypatch, budget):
    most = 200
    monkeypatch.setattr(published, "MAX_BYTES", most)
    monkeypatch.setattr(rows, "MAX_REMOVED", 3)
    spec = toy_spec(delta_format="fp16", delta_bytes=budget, settle_every=7, digest_every=1)
    deltas = []
    client = LocalClient.fresh(spec, DENSE, deltas.append)
    work(client, list(range(LANES)), 45)
    # At the least one row goes, and tombstones always: of two tables, three of each look.
    assert max(map(size, deltas)) <= most and max(map(size, deltas)) > most - 40
    (shard,) = client.shards
    assert shard.counters.expired and sum(shard.published.withheld.values())
    for step in range(46, 90):  # nothing more is learned: what waited goes
        deltas.append(shard.learn(step, shard.clock_ms, [LaneGradients(n) for n in range(LANES)]))
    replica = {table.name: {} for table in TABLES}
    for delta in deltas:
        for name, (keys, values, removed) in to_arrays(delta).items():
            assert len(removed) <= 3
            replica[name].update(zip(keys.tolist(), values, strict=True))
            for key in removed.tolist():
                replica[name].pop(key, None)
    assert max(map(size, deltas)) <= most and not sum(shard.published.withheld.values())
    for name, table in shard.tables.items():
        its = table.export()
        for key, row in zip(its["keys"].tolist(), its["values"].astype(np.float16), strict=True):
            assert (replica[name].pop(key) == row).all()
        assert not replica[name]


def test_so_many_rows_expire_at_one_look_and_the_others_at_the_next(monkeypatch):
    monkeypatch.setattr(rows, "MAX_REMOVED", 2)
    table, ones = Table(TableConfig("t", 3, 0.1, ttl_s=1), 0), np.ones(1, np.int32)
    for key, used_ms in ((4, 30), (1, 20), (9, 20), (2, 10), (3, 20), (5, 5_000)):
        table.apply(ids(key), np.ones((1, 3), np.float32), ones, used_ms)
    left = []
    while len(stale := table.stale(5_000)):
        left.append(table.expire(5_000, stale).tolist())
    assert left == [[1, 2], [3, 9], [4]] and len(table) == 1  # by (time, key)


def test_what_was_used_since_the_look_stays():
    table, ones = Table(TableConfig("t", 3, 0.1, ttl_s=1), 0), np.ones(2, np.int32)
    table.apply(ids(1, 2), np.ones((2, 3), np.float32), ones, 0)
    stale = table.stale(5_000)
    table.apply(ids(2, 7), np.ones((2, 3), np.float32), ones, 5_000)
    assert stale.tolist() == [1, 2] and table.expire(5_000, stale).tolist() == [1]


def test_a_budget_that_was_lowered_is_reached_over_several_steps(monkeypatch):
    monkeypatch.setattr(rows, "MAX_REMOVED", 40)
    large = Table(TableConfig("t", 8, 0.1), 0)
    keys = np.arange(200)
    large.apply(keys, np.ones((200, 8), np.float32), np.ones(200, np.int32), 1)
    small = Table(TableConfig("t", 8, 0.1, budget_mb=0.005), 0)
    small.load(large.export())
    sizes = []
    for key in range(1_000, 1_006):
        done = small.apply(ids(key), np.ones((1, 8), np.float32), np.ones(1, np.int32), 2)
        assert len(done.evicted) <= 40
        sizes.append(len(small))
    limit = rows.rows_within(0.005, 8)
    assert sizes[:2] == [160, 120] and sizes[-1] <= limit < 120
    assert 1_005 in small.export()["keys"]


def test_a_record_that_is_too_large_is_told_with_its_size_before_anything_is_appended():
    with pytest.raises(ValueError, match=r"deltas: a record has 3000 bytes, expected at most 2000.*shards"):
        check_appends("deltas", 1, [(0, b"", b"x"), (0, b"k" * 8, b"x" * 2992)], 2_000)
    check_appends("deltas", 1, [(0, b"", b"x" * 2000)], 2_000)
    assert KEY_BYTES * rows.MAX_REMOVED * 3 < published.MAX_BYTES
