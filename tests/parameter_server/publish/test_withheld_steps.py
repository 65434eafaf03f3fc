"""Steps whose rows are held back: less is sent, and after the next step that isn't held all is there."""

from dataclasses import replace

import numpy as np
import pytest

from parameter_server.publish.deltas import DeltaAssembler, StepDelta
from parameter_server.publish.rounding import digest_of_rows
from parameter_server.rpc.parameter_client import LocalClient, fresh_shards
from parameter_server.rpc.protocol import exchange_frame, read_exchange
from parameter_server.shard.lanes import LaneGradients, StepSum
from parameter_server.shard.shard import Shard, digest_of_shards
from parameter_server.table.table import table_seed
from recsys.config.system_config import StepConfig
from recsys.events.records import Delta, pack
from tests.support.parameter_server.small_line import (
    DENSE,
    LANES,
    TABLES,
    keys_of,
    lane_of,
    time_of,
    toy_spec,
    work,
)
from training.steps.sequencer import Sequencer

STEPS = 41


class Copy:
    """What a replica holds: the fold of the published deltas."""

    def __init__(self) -> None:
        self.values: dict[str, dict[int, np.ndarray]] = {table.name: {} for table in TABLES}
        self.dense: np.ndarray | None = None

    def apply(self, step: StepDelta) -> None:
        for name, changed in step.tables.items():
            for key, row in zip(changed.keys.tolist(), changed.values, strict=True):
                self.values[name][key] = row.copy()
            for key in changed.removed.tolist():
                self.values[name].pop(key, None)
        if step.dense is not None:
            self.dense = step.dense

    def digest(self, seed: int) -> int:
        total = 0
        for name, rows in self.values.items():
            keys = np.array(list(rows), np.int64)
            if len(keys):
                total += digest_of_rows(table_seed(seed, name), keys, np.array(list(rows.values())),
                                        np.ones(len(keys), np.bool_))  # fmt: skip
        return total % 2**64


def run(gathered: int, parts: int = 2) -> tuple[Copy, list[Shard], int, list[Delta]]:
    """A line whose rows are published each ``gathered`` steps."""
    spec = toy_spec(parts, delta_format="fp16", settle_every=10**9, digest_every=1)
    shards, deltas = fresh_shards(spec, DENSE), list[Delta]()
    client, copy, assembler = (
        LocalClient(shards, deltas.append),
        Copy(),
        DeltaAssembler("main", 0, 0),
    )
    at = 0
    for step in range(1, STEPS + 1):
        lanes = []
        for lane in range(LANES):
            rows = client.lookup(step - 1, keys_of(step, lane))
            its = lane_of(step, lane, rows, client.dense(step - 1))
            held = step % gathered != 0
            lanes.append(LaneGradients(lane, its.tables, its.dense, its.metrics, its.forget, held))
        client.exchange(step, time_of(step), lanes, None)
        for delta in deltas[at:]:
            steps = assembler.feed_delta(delta)
            assert isinstance(steps, list)
            for whole in steps:
                copy.apply(whole)
                assert copy.digest(spec.seed) == whole.digest  # of what was published, at each step
        at = len(deltas)
    return copy, shards, sum(len(pack(delta)) for delta in deltas), deltas


@pytest.mark.parametrize("gathered", [4, 8])
def test_nothing_is_lost_and_less_is_sent(gathered: int) -> None:
    plain, shards, sent, _ = run(1)
    held, others, less, deltas = run(gathered)
    for ours, theirs in zip(shards, others, strict=True):
        assert ours.tables["features"].export()["keys"].tolist()
        assert all(
            np.array_equal(ours.tables[t.name].export()[c], theirs.tables[t.name].export()[c])
            for t in TABLES for c in ("keys", "values")
        )  # fmt: skip
    assert less < 0.8 * sent
    assert sum(bool(delta.dense) for delta in deltas) == STEPS // gathered
    waiting = sum(sum(shard.published.withheld.values()) for shard in others)
    assert (waiting > 0) == (STEPS % gathered != 0)


def test_after_a_step_that_is_not_held_replicas_are_where_they_would_be() -> None:
    plain, *_ = run(1)
    held, *_ = run(41)  # the last step alone is published
    for name, rows in plain.values.items():
        assert rows.keys() == held.values[name].keys()
        assert all(np.array_equal(row, held.values[name][key]) for key, row in rows.items())
    assert plain.dense is not None and np.array_equal(plain.dense, held.dense)


def test_it_is_part_of_the_step_wherever_that_is_written_down() -> None:
    lane = LaneGradients(0, defers_rows=True)
    lanes, _ = read_exchange(exchange_frame(1, 1, 0, [lane], None))
    assert lanes[0].defers_rows
    total = StepSum(3, 4, {}, None, {}, {}, True)
    assert StepSum.decode(total.encode()) == total


def test_a_sequencer_holds_back_as_it_is_told_and_by_default_never() -> None:
    sequencer = Sequencer(StepConfig(examples=1), line="main", epoch=0, digest="")
    held = []
    for n in range(12):
        sequencer.gathered = 1 if n < 4 else 4
        sequencer.arrived(0, n, n, n)
        step = sequencer.cut(n)
        assert step is not None
        held.append(step.defers_rows)
    assert held == [False] * 4 + [True, True, True, False] * 2


def test_dense_parameters_travel_as_often_as_their_time_says() -> None:
    """Steps are 3 s apart; a shard that starts again from an export goes on in the same way."""
    spec = toy_spec(1, settle_every=8, dense_every_ms=9_000)
    deltas, plain = list[Delta](), list[Delta]()
    client = LocalClient.fresh(spec, DENSE, deltas.append)
    work(client, list(range(LANES)), 11)
    again = Shard(spec, DENSE)
    arrays, meta = client.shards[0].export()
    again.load([arrays], meta)
    work(LocalClient([again], deltas.append), list(range(LANES)), 20)
    assert [delta.step for delta in deltas if delta.dense] == [1, 4, 7, 8, 11, 14, 16, 19]
    each = LocalClient.fresh(replace(spec, dense_every_ms=0), DENSE, plain.append)
    work(each, list(range(LANES)), 20)
    assert all(delta.dense for delta in plain)
    assert digest_of_shards([again]) == digest_of_shards(each.shards)
    sent = {delta.step: delta.dense for delta in plain}
    assert all(delta.dense in (b"", sent[delta.step]) for delta in deltas)
