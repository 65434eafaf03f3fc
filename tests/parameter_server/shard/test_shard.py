from dataclasses import replace

import numpy as np
import pytest

from parameter_server.publish.deltas import DeltaAssembler, Gap, to_arrays
from parameter_server.rpc.parameter_client import LocalClient, fresh_shards
from parameter_server.shard.gradient_rejections import describe_rejections
from parameter_server.shard.lanes import LaneGradients, RowGradients, StepSum
from parameter_server.shard.shard import Shard, StepMismatch, digest_of_shards
from parameter_server.table.table import initial_rows
from recsys.events.records import pack
from tests.support.parameter_server.small_line import DENSE, LANES, TABLES, toy_spec, union, work


def learned(parts=1, until=30, publish=None):
    client = LocalClient.fresh(toy_spec(parts), DENSE, publish)
    work(client, list(range(LANES)), until)
    return client.shards


def lane(number, *keys, gradient=1.0, table="features", dim=3, **more):
    ids, ones = np.array(keys, np.int64), np.ones(len(keys), np.int32)
    rows = RowGradients(ids, np.full((len(keys), dim), gradient, np.float32), ones)
    return LaneGradients(number, {table: rows}, **more)


def idle(*numbers):
    return [LaneGradients(number) for number in numbers]


@pytest.mark.parametrize("parts", [2, 3])
def test_the_number_of_shards_changes_no_bit(parts):
    assert digest_of_shards(learned(parts)) == digest_of_shards(learned(1))


def test_another_step_or_seed_changes_the_digest():
    digests = {digest_of_shards(learned(until=n)) for n in (29, 30)}
    other = LocalClient.fresh(toy_spec(seed=1), DENSE)
    work(other, list(range(LANES)), 30)
    assert len(digests | {digest_of_shards(other.shards)}) == 3


def test_rows_expire_in_the_toy_line():
    shard = learned(until=60)[0]
    assert shard.counters.expired > 10 and shard.counters.inserted > 40
    assert shard.tables["items"].waiting > 0


def test_lanes_are_added_in_their_order_whoever_comes_first():
    big = [lane(0, 5, gradient=1e-8), lane(1, 5, gradient=1.0), lane(2, 5, gradient=-1.0)]
    one, other = Shard(toy_spec()), Shard(toy_spec())
    one.learn(1, 0, [*big, *idle(3)])
    other.learn(1, 0, [*idle(3), *reversed(big)])
    swapped = Shard(toy_spec())
    order = [replace(big[number], lane=n) for n, number in enumerate((1, 2, 0))]
    swapped.learn(1, 0, [*order, *idle(3)])
    assert one.digest() == other.digest() != swapped.digest()


def test_a_step_is_learned_once_and_never_over_a_hole():
    shard = learned(until=5)[0]
    digest = shard.digest()
    assert shard.learn(5, 0, idle(0, 1, 2, 3)) is None
    assert shard.learn(2, 0, []) is None
    with pytest.raises(StepMismatch, match="applied step 5, and was asked for step 7") as caught:
        shard.learn(7, 0, idle(0, 1, 2, 3))
    assert (caught.value.asked, caught.value.applied) == (7, 5)
    assert shard.digest() == digest


def test_every_lane_once_is_needed():
    with pytest.raises(ValueError, match=r"lanes \[0, 1, 1, 3\], expected each of 0 to 3 once"):
        Shard(toy_spec()).learn(1, 0, idle(0, 1, 1, 3))


def test_unknown_tables_and_wrong_shapes_are_named_and_change_nothing():
    shard = Shard(toy_spec())
    digest = shard.digest()
    with pytest.raises(ValueError, match="no tables \\['authors'\\]"):
        shard.learn(1, 0, [lane(0, 5, table="authors"), *idle(1, 2, 3)])
    with pytest.raises(ValueError, match="1 keys come with gradients \\(1, 4\\)"):
        shard.learn(1, 0, [lane(0, 5, dim=4), *idle(1, 2, 3)])
    with pytest.raises(ValueError, match="no table 'authors'"):
        shard.lookup(0, {"authors": np.array([1])})
    assert shard.digest() == digest and shard.applied == 0


@pytest.mark.parametrize("newest", range(2, 26))
def test_one_step_back_is_what_it_was(newest):
    """Over inserts, admissions, expiry (every fourth step) and ids that the step didn't touch."""
    before, after = learned(until=newest - 1)[0], learned(until=newest)[0]
    keys = {name: np.arange(-50, 50) for name in ("features", "items")}
    for step in range(1, newest + 2):
        for name, ids in union(step, list(range(LANES))).items():
            keys[name] = np.concatenate([keys[name], ids])
    now, then = before.lookup(newest - 1, keys), after.lookup(newest - 1, keys)
    assert all((now[name] == then[name]).all() for name in keys)
    assert (before.dense_after(newest - 1) == after.dense_after(newest - 1)).all()
    assert any((after.lookup(newest, keys)[name] != then[name]).any() for name in keys)
    for name in keys:  # one table alone
        assert (after.lookup(newest - 1, {name: keys[name]})[name] == then[name]).all()
    for step in (newest - 2, newest + 1):
        with pytest.raises(StepMismatch):
            after.lookup(step, keys)


def test_deltas_fold_to_the_rows_of_the_shards():
    deltas = []
    shards = learned(2, 60, deltas.append)
    assembler, rows, dense = DeltaAssembler("main", 0, 0), {t.name: {} for t in TABLES}, None
    for delta in deltas:
        steps = assembler.feed(pack(delta))
        assert not isinstance(steps, Gap)
        for step in steps:
            dense = step.dense
            for name, (keys, values, removed) in step.tables.items():
                rows[name].update(zip(keys.tolist(), values, strict=True))
                for key in removed.tolist():
                    del rows[name][key]
    assert assembler.step == 60 and (dense == shards[0].dense.averaged).all()
    for name in rows:
        exports = [shard.tables[name].export() for shard in shards]
        assert len(rows[name]) == sum(len(e["keys"]) for e in exports) > 10
        for export in exports:
            for key, values in zip(export["keys"].tolist(), export["values"], strict=True):
                assert (rows[name][key] == values).all()


def test_a_delta_says_what_changed():
    shard = Shard(toy_spec(), DENSE)
    lanes = [lane(n, 5, 6 + n, metrics={"loss": 0.5}) for n in range(LANES)]
    lanes[0] = replace(lanes[0], dense=np.full(7, 0.5, np.float32))
    delta = shard.learn(1, 99, lanes)
    assert (delta.step, delta.base_step, delta.time_ms) == (1, 0, 99)
    assert delta.metrics == {"loss": 2.0}
    keys, values, removed = to_arrays(delta)["features"]
    assert keys.tolist() == [5, 6, 7, 8, 9] and len(removed) == 0
    assert (values == shard.lookup(1, {"features": keys})["features"]).all()
    assert delta.dense == shard.dense.averaged.tobytes() != DENSE.tobytes()


def test_ids_below_the_admission_threshold_are_no_rows_and_in_no_delta():
    shard = Shard(toy_spec())
    delta = shard.learn(1, 0, [lane(0, 5, table="items", dim=5), *idle(1, 2, 3)])
    assert delta.tables == [] and len(shard.tables["items"]) == 0
    delta = shard.learn(2, 0, [lane(0, 5, table="items", dim=5), *idle(1, 2, 3)])
    assert to_arrays(delta)["items"].keys.tolist() == [5]


def test_forgetting_removes_rows_and_says_so():
    shard = Shard(toy_spec())
    shard.learn(1, 0, [lane(0, 5, 6, 7), *idle(1, 2, 3)])
    forget = {"features": np.array([6, 5, 99])}
    delta = shard.learn(2, 0, [lane(0, 5, 7, forget=forget), *idle(1, 2, 3)])
    keys, _, removed = to_arrays(delta)["features"]
    assert keys.tolist() == [7] and removed.tolist() == [5, 6]
    gone = np.array([5, 6])
    assert (shard.lookup(2, {"features": gone})["features"] == initial_rows(TABLES[0], 0, gone)).all()
    assert (shard.lookup(1, {"features": gone})["features"] != initial_rows(TABLES[0], 0, gone)).all()


def test_a_bad_gradient_is_refused_and_counted():
    shard = Shard(toy_spec(), DENSE)
    bad = replace(lane(0, 5, gradient=np.nan), dense=np.full(7, np.inf, np.float32))
    shard.learn(1, 0, [bad, lane(1, 6), *idle(2, 3)])
    assert (shard.counters.refused_rows, shard.counters.refused_dense) == (1, 1)
    assert (shard.dense.values == DENSE).all() and len(shard.tables["features"]) == 1


def test_event_time_never_goes_back():
    shard = Shard(toy_spec())
    shard.learn(1, 5_000, idle(0, 1, 2, 3))
    assert shard.learn(2, 1_000, idle(0, 1, 2, 3)).time_ms == 5_000


def test_a_sum_comes_back_from_its_bytes():
    shard = Shard(toy_spec(), DENSE)
    lanes = [
        lane(n, 5, n, dense=DENSE, metrics={"m": 0.1}, forget={"items": np.array([3])}) for n in range(4)
    ]
    total = shard.merge(1, 12, lanes)
    again, other = StepSum.decode(total.encode()), Shard(toy_spec(), DENSE)
    assert other.apply(again) == shard.apply(total) and other.digest() == shard.digest()


def test_export_and_load_change_nothing_whatever_the_number_of_shards():
    shards = learned(2, 20)
    exports = [shard.export() for shard in shards]
    for parts in (1, 2, 3):
        others = fresh_shards(toy_spec(parts), DENSE)
        for other in others:
            own = exports if parts != 2 else [exports[other.spec.part]]
            other.load([arrays for arrays, _ in own], exports[0][1])
        assert digest_of_shards(others) == digest_of_shards(shards)
        work(LocalClient(others), list(range(LANES)), 40)
        assert digest_of_shards(others) == digest_of_shards(learned(1, 40))


def test_specs_are_checked():
    with pytest.raises(ValueError, match="part is 2, expected 0 to 1"):
        replace(toy_spec(2), part=2)
    with pytest.raises(ValueError, match="distinct names"):
        replace(toy_spec(), tables=(TABLES[0], TABLES[0]))
    with pytest.raises(ValueError, match="dense parameters live on part 0"):
        Shard(replace(toy_spec(2), part=1), DENSE)


def test_what_is_refused_is_told_with_its_lanes_and_the_same_after_a_restart():
    shard, again = Shard(toy_spec(), DENSE), Shard(toy_spec(), DENSE)
    good = shard.learn(1, 0, [lane(0, 5), *idle(1, 2, 3)])
    assert not [name for name in good.metrics if name.startswith("refused")]
    bad = [lane(0, 5), lane(1, 6, 7, gradient=np.nan), lane(2, 5, gradient=1e9), *idle(3)]
    again.learn(1, 0, [lane(0, 5), *idle(1, 2, 3)])
    total = shard.merge(2, 0, bad)
    told = shard.apply(total)
    assert describe_rejections(told.metrics, 0) == "shard 0 refused the gradients of 3 rows, of lanes 1, 2"
    assert again.apply(StepSum.decode(total.encode())) == told and shard.counters.refused_rows == 3
    assert all(np.isfinite(rows).all() for rows in shard.lookup(2, {"features": np.arange(9)}).values())


def test_what_only_the_sum_exceeds_and_other_parts_refuse_is_told_too():
    shard = Shard(toy_spec(), DENSE)
    told = shard.learn(1, 0, [lane(0, 5, gradient=900.0), lane(1, 5, gradient=900.0), *idle(2, 3)])
    assert "of no lane alone" in describe_rejections(told.metrics, 0)
    other = Shard(replace(toy_spec(2), part=1))
    lanes = [lane(0, 5, gradient=np.inf, metrics={"examples": 1.0}), *idle(1, 2, 3)]
    told = other.learn(1, 0, lanes)
    assert (
        describe_rejections(told.metrics, 1)
        and "examples" not in told.metrics
        and not describe_rejections({}, 1)
    )
