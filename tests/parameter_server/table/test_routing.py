import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parameter_server.table.routing import shard_of, split, unique
from recsys.events.hashing import splitmix64

INT64 = st.integers(-(2**63), 2**63 - 1)
KEYS = st.lists(INT64, max_size=60).map(lambda ids: np.array(ids, np.int64))


@given(KEYS, st.integers(1, 9))
def test_a_shard_owns_a_range_of_the_hash(keys, shards):
    high = (splitmix64(keys.view(np.uint64)) >> np.uint64(32)).astype(object)
    assert shard_of(keys, shards).tolist() == [int(h) * shards >> 32 for h in high]


def test_shards_get_equal_shares():
    shares = np.bincount(shard_of(np.arange(30_000), 3), minlength=3)
    assert shares.sum() == 30_000 and abs(shares - 10_000).max() < 400


@given(KEYS, st.integers(1, 9))
def test_what_is_split_comes_back_in_order(keys, shards):
    by = split(keys, shards)
    assert sorted(by.order.tolist()) == list(range(len(keys)))
    rows = []
    for shard in range(shards):
        own = by.of(shard)
        assert (np.diff(own) > 0).all() and (shard_of(keys[own], shards) == shard).all()
        rows.append(np.stack([keys[own] % 97, own], 1).astype(np.float32).reshape(-1, 2))
    merged = by.merge(rows, 2)
    assert merged[:, 0].tolist() == (keys % 97).tolist()
    assert merged[:, 1].tolist() == list(range(len(keys)))


@given(st.lists(st.integers(0, 9), max_size=40))
def test_unique_keeps_the_order_first_seen(ids):
    keys = np.array(ids, np.int64)
    found, inverse = unique(keys)
    assert found.tolist() == list(dict.fromkeys(ids))
    assert found[inverse].tolist() == ids


def test_read_only_keys_are_welcome():
    keys = np.frombuffer(np.arange(5).tobytes(), np.int64)
    assert len(shard_of(keys, 2)) == 5 and len(unique(keys)[0]) == 5


def test_no_shards_is_an_error():
    with pytest.raises(ValueError, match="shards is 0"):
        shard_of(np.arange(3), 0)
