"""The learning rate of a step: part of its record, applied once however often the step is learned."""

import functools
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from parameter_server.rpc.parameter_client import LocalClient, route_lanes
from parameter_server.rpc.protocol import LaneHead, exchange_frame, read_exchange
from parameter_server.shard.lanes import LaneGradients, StepSum, add_lanes
from parameter_server.shard.shard import digest_of_shards
from parameter_server.table.dense import Dense
from parameter_server.table.table import Table
from recsys.config.system_config import TableConfig
from recsys.events.records import Step, pack, unpack
from tests.support.parameter_server.durable_line import ALL, PARTS, SPEC, STEPS, Line
from tests.support.parameter_server.small_line import DENSE, work
from tests.support.training.learning_loops import drain, fresh_client, step_of, trained_log, worker

RAISED = range(9, 15)


def rated(client, rate: float = 3.0):
    """A client whose steps in RAISED have another rate, as their records would say."""
    whole = client.exchange

    def with_rate(step, time_ms, lanes, *more):
        its = rate if step in RAISED else 1.0
        return whole(step, time_ms, [replace(lane, rate=its) for lane in lanes], *more)

    client.exchange = with_rate
    return client


@functools.cache
def undisturbed(rate: float):
    deltas = []
    client = rated(LocalClient.fresh(SPEC, DENSE, deltas.append), rate)
    work(client, ALL, STEPS)
    return digest_of_shards(client.shards), {(d.step, d.part): d for d in deltas}


@pytest.mark.parametrize("point, step", [("torn write", RAISED.start), ("after write", RAISED.stop - 1)])
def test_a_crash_neither_loses_nor_repeats_a_raised_rate(tmp_path, point, step):
    digest, deltas = undisturbed(3.0)
    line = rated(Line(tmp_path, (point, 0, step)))
    work(line, ALL, STEPS)
    assert line.crashes == 1 and line.digest() == digest != undisturbed(1.0)[0]
    for part in range(PARTS):  # and once more, from snapshot and file alone
        line.crash(part)
    assert line.digest() == digest
    found = [msgspec.msgpack.decode(data) for data in line.published]
    assert {(d["step"], d["part"]): d["checksum"] for d in found} == {
        place: delta.checksum for place, delta in deltas.items()
    }


def test_rows_and_dense_parameters_move_as_many_times_as_far_and_remember_the_same():
    config = TableConfig("t", 2, 0.1, initial=0.5)
    keys, gradients = np.array([3, 9]), np.array([[1.0, 2.0], [-3.0, 0.5]], np.float32)
    usual, raised = Table(config, 0), Table(config, 0)
    before = usual.lookup(keys)
    for table, more in ((usual, ()), (raised, (2.0,))):
        table.apply(keys, gradients, np.ones(2, np.int32), 1, *more)
    moved = [table.lookup(keys) - before for table in (usual, raised)]
    np.testing.assert_allclose(moved[1], 2 * moved[0], rtol=1e-5)
    same = [table.export()["accumulator"].tolist() for table in (usual, raised)]
    assert same[0] == same[1]

    one, other = (Dense(np.zeros(3, np.float32), 0.01, first=2.0) for _ in range(2))
    one.apply(np.ones(3, np.float32))
    other.apply(np.ones(3, np.float32), 2.0)
    np.testing.assert_allclose(other.values, 2 * one.values, rtol=1e-6)
    assert np.array_equal(one.export()["v"], other.export()["v"])


def test_it_is_part_of_the_step_wherever_that_is_written_down():
    lane = LaneGradients(0, rate=2.5)
    lanes, _ = read_exchange(exchange_frame(1, 1, 0, [lane], None))
    assert lanes[0].rate == 2.5
    assert [own[0].rate for own in route_lanes([lane], 2)] == [2.5, 2.5]
    total = add_lanes(3, 4, [lane, LaneGradients(1, rate=2.5)], {})
    assert total.rate == 2.5 and StepSum.decode(total.encode()) == total
    assert unpack(pack(msgspec.structs.replace(step_of("main", 1), rate=2.5)), Step).rate == 2.5


def test_what_was_written_before_there_were_rates_reads_as_the_usual_one():
    old = msgspec.msgpack.decode(StepSum(3, 4, {}, None, {}).encode())
    assert old.pop("rate") == 1.0
    old["held"] = True  # a field of earlier versions
    assert StepSum.decode(msgspec.msgpack.encode(old)).rate == 1.0
    record = msgspec.msgpack.decode(pack(step_of("main", 1)))
    assert record.pop("rate") == 1.0
    assert unpack(msgspec.msgpack.encode(record), Step).rate == 1.0
    head = [0, [], [], False, {}]
    assert msgspec.convert(head, LaneHead).rate == 1.0
    for of_another_version in ([*head, True, 0.5], [*head, False]):  # refused, never misread
        with pytest.raises(msgspec.ValidationError, match=r"\$\[5\]"):
            msgspec.msgpack.decode(msgspec.msgpack.encode(of_another_version), type=LaneHead)


@pytest.mark.parametrize("rates", [(1.0, 2.0), (0.0, 0.0), (11.0, 11.0), (float("nan"),) * 2])
def test_lanes_of_several_rates_and_rates_that_make_no_sense_are_refused(rates):
    lanes = [LaneGradients(n, rate=rate) for n, rate in enumerate(rates)]
    with pytest.raises(ValueError, match="step 7 came with the learning rates"):
        add_lanes(7, 0, lanes, {})


def test_a_worker_learns_by_the_rate_of_the_record(tmp_path):
    from tests.support.training.small_feed import toy_config

    moved = {}
    for rate in (1.0, 3.0):
        log, config = trained_log(8), toy_config(str(tmp_path))
        records = log._records("steps", 0)
        for at, record in enumerate(records):
            step = msgspec.structs.replace(unpack(record.value, Step), rate=rate)
            records[at] = record._replace(value=pack(step))
        client = fresh_client(config)
        before = client.dense(0)
        its = worker(log, client, config)
        its.turn()
        moved[rate] = client.dense(1) - before
        drain(its)
    np.testing.assert_allclose(moved[3.0], 3 * moved[1.0], rtol=1e-3, atol=1e-6)
    assert np.abs(moved[1.0]).max() > 0


@pytest.mark.parametrize("rate", [0.01, 10.0])
def test_a_rate_of_up_to_ten_times_the_usual_is_taken(rate):
    assert add_lanes(7, 0, [LaneGradients(n, rate=rate) for n in range(2)], {}).rate == rate
