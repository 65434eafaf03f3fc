"""Merging two parents: interpolation goes from one to the other, and what came or left since b counts."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parameter_server.shard.lanes import LaneGradients, RowGradients
from parameter_server.shard.shard import Shard, ShardSpec
from recsys.config.system_config import TableConfig
from training.merging.merge import Blend, Blends, Parent, Since, interpolate

TABLES = (TableConfig("features", 3, 0.1, 0.01), TableConfig("users", 2, 0.1, 0.0))
SPEC = ShardSpec(TABLES, lanes=1, dense_average=0.9)
DENSE = np.linspace(-1, 1, 4, dtype=np.float32)
Rows = dict[str, list[int]]


def gradients(seed: int, rows: Rows, forget: Rows) -> LaneGradients:
    draw = np.random.default_rng(seed)
    tables = {}
    for table in TABLES:
        keys = np.array(rows.get(table.name, []), np.int64)
        its = draw.normal(size=(len(keys), table.dim)).astype(np.float32)
        tables[table.name] = RowGradients(keys, its, np.ones(len(keys), np.int32))
    gone = {name: np.array(keys, np.int64) for name, keys in forget.items() if keys}
    return LaneGradients(0, tables, draw.normal(size=4).astype(np.float32), {}, gone)


def learn(shard: Shard, seed: int, rows: list[int], forget: Sequence[int] = ()) -> Shard:
    step = shard.applied + 1
    shard.learn(step, step * 1000, [gradients(seed, {"features": rows, "users": rows[:2]},
                                              {"features": list(forget)})])  # fmt: skip
    return shard


def shard_of(parent: Parent) -> Shard:
    shard = Shard(SPEC, DENSE)
    shard.load([parent.arrays], parent.meta)
    return shard


def family(
    old: list[int], online: list[int], offline: list[int], gone: Sequence[int] = (), seed: int = 0
) -> tuple[Parent, Parent, Parent]:
    """Online, offline and their ancestor. ``gone``: rows that left online."""
    ancestor = Parent(*learn(Shard(SPEC, DENSE), seed, old).export())
    one = learn(learn(shard_of(ancestor), seed + 1, online), seed + 2, online[:1], gone)
    other = learn(shard_of(ancestor), seed + 3, offline)
    return Parent(*one.export()), Parent(*other.export()), ancestor


def rows(parent: Parent, table: str = "features") -> dict[int, tuple[bytes, bytes]]:
    columns = [parent.arrays[f"table/{table}/{name}"] for name in ("keys", "values", "accumulator")]
    return {int(k): (v.tobytes(), a.tobytes()) for k, v, a in zip(*columns, strict=True)}


keys = st.lists(st.integers(1, 12), max_size=8, unique=True)


@settings(max_examples=60, deadline=None)
@given(keys, keys, keys, keys, st.integers(0, 5))
def test_at_its_ends_it_is_a_parent_bit_for_bit(
    old: list[int], on: list[int], off: list[int], gone: list[int], seed: int
) -> None:
    online, offline, ancestor = family(old, on, off, gone, seed)
    for share, parent in ((1.0, online), (0.0, offline)):
        merged = interpolate(online, offline, ancestor, Blends(Blend(share, share), share))
        for table in ("features", "users"):
            its, both = (rows(merged, table), rows(online, table).keys() & rows(offline, table).keys())
            assert {k: its[k] for k in both} == {k: rows(parent, table)[k] for k in both}
        for name in ("values", "averaged", "m", "v", "t"):
            dense = merged.arrays[f"dense/{name}"], parent.arrays[f"dense/{name}"]
            assert dense[0].tobytes() == dense[1].tobytes() and dense[0].dtype == dense[1].dtype


@settings(max_examples=60, deadline=None)
@given(keys, keys, keys, keys, st.floats(0, 1))
def test_what_came_since_stays_and_what_left_stays_away(
    old: list[int], on: list[int], off: list[int], gone: list[int], share: float
) -> None:
    online, offline, ancestor = family(old, on, off, gone)
    merged = interpolate(online, offline, ancestor, Blends(Blend(share, share), share))
    here, there, before = rows(online), rows(offline), rows(ancestor)
    found = rows(merged)
    assert found.keys() == here.keys() | (there.keys() - before.keys())
    assert not found.keys() & (before.keys() - here.keys())
    for key in here.keys() - there.keys():
        assert found[key] == here[key]
    for key in found.keys() - here.keys():
        assert found[key] == there[key]


@settings(max_examples=25, deadline=None)
@given(keys, keys, keys, st.floats(0, 1))
def test_a_merged_line_learns_on(on: list[int], off: list[int], more: list[int], w: float) -> None:
    online, offline, ancestor = family([1, 2, 3], on, off)
    merged = interpolate(online, offline, ancestor, Blends(Blend(w, w), w))
    shard = shard_of(merged)
    assert (shard.applied, shard.digest()) == (online.meta["step"], shard_of(merged).digest())
    learn(shard, 9, more)
    assert shard.applied == online.meta["step"] + 1
    assert all(np.isfinite(a).all() for a in shard.export()[0].values() if a.dtype == np.float32)


def test_in_between_it_is_in_between_by_how_often_a_row_was_used() -> None:
    online, offline, ancestor = family([1, 2], [1, 2], [1, 2])
    blends = Blends(Blend(rare=0.0, frequent=1.0, half=10.0), 0.5)
    since = Since(uses={"features": (np.array([2]), np.array([30]))})
    merged = interpolate(online, offline, ancestor, blends, since)

    def row(parent: Parent, key: int) -> Any:
        at = list(parent.arrays["table/features/keys"]).index(key)
        return parent.arrays["table/features/values"][at].astype(np.float64)

    assert np.array_equal(row(merged, 1), row(offline, 1))
    assert np.allclose(row(merged, 2), 0.25 * row(offline, 2) + 0.75 * row(online, 2), atol=1e-6)
    middle = (online.arrays["dense/values"] + offline.arrays["dense/values"]) / 2
    assert np.allclose(merged.arrays["dense/values"], middle, atol=1e-6)


def test_a_row_that_came_and_left_since_stays_away_and_one_used_since_stays() -> None:
    online, offline, ancestor = family([1, 2], [1], [1, 7])
    assert 7 in rows(interpolate(online, offline, ancestor, Blends()))
    since = Since(removed={"features": np.array([7])})
    assert 7 not in rows(interpolate(online, offline, ancestor, Blends(), since))
    job = learn(shard_of(ancestor), 5, [1], [1, 2])  # both left offline; 1 was used online since
    merged = interpolate(online, Parent(*job.export()), ancestor, Blends())
    assert set(rows(merged)) == {1} and rows(merged)[1] == rows(online)[1]


def test_a_row_made_again_since_it_was_removed_has_nothing_of_the_offline_one() -> None:
    online, offline, ancestor = family([1, 7], [1, 7], [1, 7])
    since = Since(removed={"features": np.array([7])})
    merged = rows(interpolate(online, offline, ancestor, Blends(), since))
    assert merged[7] == rows(online)[7] != rows(offline)[7]
    assert merged[1] not in (rows(online)[1], rows(offline)[1])


def test_another_model_and_wrong_shares_are_refused() -> None:
    online, offline, ancestor = family([1], [1], [2])
    wide = dict(offline.arrays) | {"table/users/values": np.zeros((1, 9), np.float32)}
    with pytest.raises(ValueError, match="train the candidate with the configuration"):
        interpolate(online, replace(offline, arrays=wide), ancestor, Blends())
    for wrong in ({"rare": 1.5}, {"frequent": -0.1}, {"half": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Blend(**wrong)
    with pytest.raises(ValueError, match="dense is 2"):
        Blends(dense=2.0)
