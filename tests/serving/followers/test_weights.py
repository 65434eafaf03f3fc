"""A replica follows the weights of a line: steps, snapshots, gaps."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parameter_server.publish.deltas import seal
from parameter_server.rpc.parameter_client import LocalClient
from parameter_server.shard.lanes import LaneGradients, RowGradients
from parameter_server.shard.shard import Shard
from parameter_server.storage.snapshots import remove_where, write_part
from recsys.events.control_records import Live
from recsys.events.hashing import uniforms
from recsys.events.records import CONTROL, DELTAS, Delta
from serving.followers import line_reader, weights
from tests.support.serving.followed_log import FollowedLog
from training.lines.line import spec_of


@pytest.fixture
def fixture(tmp_path: Path) -> FollowedLog:
    return FollowedLog(tmp_path)


def test_steps_follow_the_snapshot_and_stand_only_when_whole(fixture: FollowedLog) -> None:
    for step in range(1, 200):
        fixture.step(step, float(step))
        if step == 150:
            fixture.snapshot(150, 150.0)
    fixture.turn()
    assert fixture.live.replica.version == ("main", 0, 199) and fixture.row() == 199.0
    late = fixture.another()
    fixture.log.trim(DELTAS, 0, 2 * 140)  # retention: the beginning is gone
    fixture.turn(late)
    assert late.replica.version == ("main", 0, 199) and fixture.row(late) == 199.0
    half = seal(Delta(line="main", epoch=0, step=200, base_step=199, part=0, parts=2))
    fixture.put(DELTAS, half)
    fixture.turn()
    assert fixture.live.replica.step == 199


@pytest.mark.slow
def test_a_large_snapshot_is_swapped_in_within_milliseconds(fixture: FollowedLog) -> None:
    for i in range(2_000):
        fixture.item(i)
    fixture.turn()
    many = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 300_000)
    dims = {"features": 17, "items": 32, "users": 32}
    for epoch in (1, 2, 3):
        arrays = {"dense/averaged": fixture.live.replica.model.read_dense()}
        for name, dim in dims.items():
            arrays[f"table/{name}/keys"] = many
            arrays[f"table/{name}/values"] = np.full((len(many), dim), epoch, np.float32)
        write_part(fixture.folder, "main", epoch, 5, 0, 1, arrays, {"step": 5})
        fixture.put(CONTROL, Live(line="main", epoch=epoch))
        fixture.item(5_000 + epoch)  # in the same batch: its vector is made from the new rows
    took_ms = []
    for _ in range(3):
        fixture.live.followers.weights._loaded = None  # begins anew
        batch = fixture.live.followers.read()
        began = time.perf_counter()
        fixture.live.followers.apply(batch)
        took_ms.append((time.perf_counter() - began) * 1_000)
    replica = fixture.live.replica
    assert replica.version == ("main", 3, 5) and len(replica.rows["users"]) == 300_000
    assert min(took_ms) < 15, took_ms  # building them takes ten times as long
    assert len(replica.index) == len(replica.catalogue) == 2_003


def test_other_lines_and_damaged_deltas_are_passed(fixture: FollowedLog) -> None:
    for step in range(1, 60):
        fixture.step(step, -1.0, line="arm-b")
        fixture.step(step, float(step))
    fixture.put(DELTAS, b"\xc1")
    fixture.snapshot(30, 30.0)
    fixture.turn()
    assert fixture.live.replica.version == ("main", 0, 59) and fixture.row() == 59.0


def test_a_gap_waits_for_a_newer_snapshot(fixture: FollowedLog) -> None:
    fixture.step(1, 1.0)
    fixture.turn()
    for step in range(3, 20):
        fixture.step(step, float(step))
    fixture.turn()
    assert fixture.live.replica.step == 1 and fixture.live.followers.weights.line.gaps == 1
    fixture.turn()
    assert fixture.row() == 1.0  # what was applied stays
    fixture.snapshot(15, 15.0)
    fixture.turn()
    assert fixture.live.replica.version == ("main", 0, 19) and fixture.row() == 19.0
    fixture.step(20, 20.0)
    fixture.turn()
    assert fixture.live.replica.step == 20 and fixture.live.followers.weights.line.gap is None


def test_a_damaged_snapshot_that_is_the_newest_leaves_a_replica_where_it_is(fixture: FollowedLog) -> None:
    fixture.put(CONTROL, Live(line="main", epoch=0, time_ms=1))
    fixture.snapshot(2, 2.0)
    for step in range(3, 8):
        fixture.step(step, float(step))
    fixture.turn()
    assert fixture.live.replica.step == 7
    for step in range(9, 20):  # 8 is missing
        fixture.step(step, float(step))
    fixture.snapshot(15, 15.0)
    weights = next((fixture.folder / "main" / f"000000-{15:012d}").glob("*/arrays.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    for _ in range(3):  # none that is usable is newer than what was applied
        fixture.turn()
        assert fixture.live.replica.step == 7 and fixture.live.followers.weights.line.gap is not None
    fixture.snapshot(18, 18.0)
    fixture.turn()
    assert fixture.live.replica.step == 19 and fixture.live.followers.weights.line.gap is None


class Shards:
    """Shards that round and hold back, and whose deltas a replica follows."""

    def __init__(self, fixture: FollowedLog, before: "Shards | None" = None, **changes: Any) -> None:
        """``before``: shards whose snapshot these start from."""
        self.fixture = fixture
        its: dict[str, Any] = {"delta_bytes": 200, "digest_every": 4, "settle_every": 50} | changes
        self.spec = replace(spec_of(fixture.config), **its)
        publish = lambda delta: fixture.put(DELTAS, delta)  # noqa: E731
        self.client = LocalClient.fresh(self.spec, np.zeros(3, np.float32), publish)
        for shard, other in zip(self.all, before.all if before else [], strict=False):
            arrays, meta = other.export()
            shard.load([arrays], meta)
        fixture.live.replica.model.write_dense = lambda flat: None  # type: ignore[method-assign]

    @property
    def all(self) -> list[Shard]:
        return self.client.shards

    def learn(self, until: int) -> None:
        while self.all[0].applied < until:
            step = self.all[0].applied + 1
            keys = np.unique((30 * uniforms(step, np.arange(40), 1)[:, 0] ** 2).astype(np.int64))
            keys = np.append(keys, 1_000) if step == 1 else keys
            some = uniforms(step, keys, self.spec.dims["features"]).astype(np.float32)
            rows = {"features": RowGradients(keys, some, np.ones(len(keys), np.int32))}
            lanes = [LaneGradients(n, rows if n == 0 else {}) for n in range(self.spec.lanes)]
            self.client.exchange(step, 0, lanes, None)
            self.fixture.turn()

    def snapshot(self) -> None:
        for shard in self.all:
            assert shard.published.withheld["features"] > 0
            arrays, meta = shard.export()
            arrays["dense/averaged"] = np.zeros(3, np.float32)
            part, parts = shard.spec.part, shard.spec.parts
            write_part(self.fixture.folder, "main", 0, shard.applied, part, parts, arrays, meta)

    @property
    def digest(self) -> int:
        return sum(shard.published.digest for shard in self.all) % 2**64


def test_many_changed_rows_leave_memory_once_a_snapshot_has_them(
    fixture: FollowedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "REBASED_ROWS", 25)
    shards, other = Shards(fixture), fixture.another()
    shards.learn(9)
    replica = fixture.live.replica
    first, begun = replica.rows["features"], replica.rows["features"].changed
    assert begun > 25
    shards.snapshot()
    shards.learn(10)
    rebased = replica.rows["features"]
    assert rebased is not first and rebased.changed < begun // 2 and first.changed == begun
    shards.learn(30)
    assert replica.rows["features"] is rebased  # there is no newer snapshot
    other.replica.model.write_dense = lambda flat: None  # type: ignore[method-assign]
    fixture.turn(other)  # starts from the snapshot
    assert replica.step == other.replica.step == 30 and fixture.live.followers.weights.line.gaps == 0
    assert replica.digest == shards.digest == other.replica.digest
    keys = np.arange(31)
    for name, store in replica.rows.items():
        assert (store.lookup(keys) == other.replica.rows[name].lookup(keys)).all()


def test_a_snapshot_that_was_removed_is_let_go_of(fixture: FollowedLog) -> None:
    fixture.snapshot(5, 5.0)
    fixture.turn()
    rows = fixture.live.replica.rows
    fixture.step(6, 6.0)
    fixture.snapshot(6, 6.0)
    fixture.turn()
    assert fixture.live.replica.step == 6 and fixture.live.replica.rows is rows
    remove_where(fixture.folder, "main", lambda epoch, step: step == 5)
    fixture.step(7, 7.0)
    fixture.turn()
    assert fixture.live.replica.rows is not rows and fixture.row() == 7.0
    fixture.snapshot(9, 9.0)
    remove_where(fixture.folder, "main", lambda epoch, step: step == 6)
    rows = fixture.live.replica.rows
    fixture.turn()
    assert fixture.live.replica.rows is rows and fixture.row() == 7.0  # never ahead of the deltas


def test_a_newer_snapshot_that_cannot_be_opened_is_tried_again(
    fixture: FollowedLog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fixture.snapshot(5, 5.0)
    fixture.turn()
    fixture.step(6, 6.0)
    fixture.snapshot(6, 6.0)
    fixture.turn()
    rows = fixture.live.replica.rows
    remove_where(fixture.folder, "main", lambda epoch, step: step == 5)
    real = line_reader.map_rows
    for step, error in ((7, OSError(24, "Too many open files")), (8, ValueError("dimensions"))):

        def fail(*args: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(line_reader, "map_rows", fail)
        fixture.step(step, float(step))
        fixture.turn()
        assert fixture.live.replica.rows is rows and fixture.row() == step
    assert caplog.text.count("no newer snapshot could be opened") == 1
    monkeypatch.setattr(line_reader, "map_rows", real)
    fixture.turn()
    assert fixture.live.replica.rows is not rows and fixture.row() == 8.0


def test_the_newest_intact_snapshot_is_gone_over_to(fixture: FollowedLog) -> None:
    fixture.snapshot(5, 5.0)
    fixture.turn()
    for step in (6, 7, 8):
        fixture.step(step, float(step))
        fixture.snapshot(step, float(step))
    fixture.turn()
    weights = next((fixture.folder / "main" / f"000000-{8:012d}").glob("*/arrays.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    remove_where(fixture.folder, "main", lambda epoch, step: step == 5)
    rows = fixture.live.replica.rows
    fixture.turn()
    store = fixture.live.replica.rows["features"]
    assert fixture.live.replica.rows is not rows and fixture.row() == 8.0
    assert store._base is not None and store._base.step == 7


@pytest.mark.parametrize("fault", ["a delta never came", "a row was harmed", "a row was dropped"])
def test_what_diverged_from_the_shards_is_found_by_the_digest_and_mended(
    fixture: FollowedLog, fault: str
) -> None:
    shards, line = Shards(fixture), fixture.live.followers.weights.line
    shards.learn(9)
    assert fixture.live.replica.step == 9 and line.gaps == 0
    store = fixture.live.replica.rows["features"]
    if fault == "a delta never came":
        real, store.set = store.set, lambda *args: None  # type: ignore[method-assign]
        shards.learn(10)
        store.set = real  # type: ignore[method-assign]
    elif fault == "a row was harmed":
        store._values[:10] += 1
    else:
        store.remove(np.array([1_000]))
    shards.learn(20)
    assert line.gaps == 1 and "aren't those that were published" in str(line.gap)
    stood = fixture.live.replica.step
    assert stood in (12, 16, 20)  # what was applied stays, answers go on
    shards.learn(24)
    assert fixture.live.replica.step == stood and line.gaps == 1
    shards.snapshot()
    shards.learn(40)
    assert fixture.live.replica.step == 40 and line.gap is None and line.gaps == 1
    assert fixture.live.replica.digest == shards.digest


def test_another_format_of_deltas_is_followed_from_the_next_snapshot_on(fixture: FollowedLog) -> None:
    before = Shards(fixture)
    before.learn(9)
    shards = Shards(fixture, before, delta_format="int8")
    shards.learn(12)
    assert fixture.live.followers.weights.line.gaps == 1 and fixture.live.replica.step == 12
    shards.learn(14)
    shards.snapshot()
    shards.learn(24)
    assert fixture.live.replica.step == 24 and fixture.live.followers.weights.line.gap is None
    assert fixture.live.replica.digest == shards.digest


def test_repeated_deltas_change_nothing(fixture: FollowedLog) -> None:
    for step in (1, 2, 3, 1, 2, 3, 4):
        fixture.step(step, float(step))
    fixture.turn()
    assert fixture.live.replica.step == 4 and fixture.live.followers.weights.line.gaps == 0
