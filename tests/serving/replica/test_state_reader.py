"""A replica follows the log: catalogue, item state, steps; snapshots, gaps, a log that is away."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.assignment.definition import Experiment
from experiments.assignment.policy import Policies
from experiments.promotion.epoch_model import with_size
from experiments.statistics.revision import running
from parameter_server.publish.deltas import seal
from parameter_server.rpc.parameter_client import LocalClient
from parameter_server.shard.lanes import LaneGradients, RowGradients
from parameter_server.shard.shard import Shard
from parameter_server.storage.snapshots import remove_where, write_part
from recsys.config.policy_config import PolicyConfig
from recsys.config.system_config import Config, ServeConfig
from recsys.events.control_records import Candidate, Experiments, ExperimentState, Live, ModelSize
from recsys.events.event_types import Item, encode
from recsys.events.hashing import key_of, uniforms
from recsys.events.records import (
    CONTROL,
    DELTAS,
    EXAMPLES,
    ITEM_STATE,
    ITEMS,
    STEPS,
    Delta,
    ItemState,
    Range,
    SampledView,
    Step,
    TableRows,
    pack,
    topics,
)
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import FEED_SCHEMA
from recsys.log.protocol import Append, LogUnavailable, MemoryLog
from serving.replica import line_reader, state_reader
from serving.replica.replica import Replica
from serving.replica.state_reader import StateReader
from training.lines.line import spec_of

FEATURES = FeatureSet(FEED_SCHEMA)
NOW_MS = 1_790_000_000_000
KEY = key_of("item", "v0")
EXPERIMENT = """
name: more
traffic: 1.0
arms:
  control: {share: 0.5}
  treatment: {share: 0.5, overrides: {explore: 0.5}}
"""


class Fixture:
    """A log, a folder of snapshots, and a replica that follows them."""

    def __init__(self, folder: Path) -> None:
        self.config = replace(Config(), state=str(folder))
        self.folder = folder / "snapshots"
        self.log = MemoryLog()
        self.now_ms = NOW_MS
        for topic in topics(4):
            self.log.create(topic)
        self.reader = self.another()

    def another(self) -> StateReader:
        replica = Replica(FEATURES, self.config)
        return StateReader(self.log, replica, self.config, lambda: self.now_ms)

    def put(self, topic: str, value: Any, partition: int = 0) -> int:
        data = value if isinstance(value, bytes) else pack(value)
        return self.log.append(topic, [Append(partition, b"", data)])[0]

    def item(self, i: int, removed: bool = False) -> None:
        fields = {"author": "a", "tags": ["t"], "duration_ms": 9_000}
        item = Item(time_ms=1, item_id=f"v{i}", fields=fields, removed=removed)
        self.put(ITEMS, encode(item))

    def step(self, step: int, value: float, parts: int = 2, **more: Any) -> None:
        """Both parts of a step that sets the row of item v0 to ``value``."""
        dim = self.config.model.dim + 1
        for part in range(parts):
            rows = TableRows(
                table="features",
                dim=dim,
                keys=np.array([KEY], np.int64).tobytes(),
                values=np.full(dim, value, np.float32).tobytes(),
            )
            about = {"line": "main", "epoch": 0, "base_step": step - 1, "time_ms": NOW_MS} | more
            tables = [rows] if part == 0 else []
            delta = Delta(step=step, part=part, parts=parts, tables=tables, **about)
            self.put(DELTAS, seal(delta))

    def snapshot(self, step: int, value: float, epoch: int = 0, line: str = "main") -> None:
        dim = self.config.model.dim + 1
        dense = self.another().replica.model.read_dense()
        arrays = {
            "table/features/keys": np.array([KEY], np.int64),
            "table/features/values": np.full((1, dim), value, np.float32),
            "dense/averaged": dense,
        }
        write_part(self.folder, line, epoch, step, 0, 1, arrays, {"step": step})

    def turn(self, reader: StateReader | None = None) -> None:
        """Reads and applies until nothing more comes; a second passes."""
        reader = reader or self.reader
        self.now_ms += 1_001
        while True:
            batch = reader.read()
            reader.apply(batch)
            if not batch.full:
                return

    def row(self, reader: StateReader | None = None) -> float:
        rows = (reader or self.reader).replica.rows["features"]
        return float(rows.lookup(np.array([KEY], np.int64))[0, 0])


@pytest.fixture
def fixture(tmp_path: Path) -> Fixture:
    return Fixture(tmp_path)


def test_items_and_item_state_are_applied(fixture: Fixture) -> None:
    for i in range(130):
        fixture.item(i)
    fixture.item(3, removed=True)
    columns = 2 * len(FEATURES.kinds)
    state = ItemState(
        offsets=[0] * 4,
        keys=np.array([KEY], np.int64).tobytes(),
        values=np.full(columns, 2.0, np.float32).tobytes(),
        last_ms=np.array([NOW_MS], np.int64).tobytes(),
    )
    fixture.put(ITEM_STATE, state)
    fixture.put(ITEM_STATE, b"\xc1")
    fixture.turn()
    replica = fixture.reader.replica
    assert len(replica.catalogue) == 130 and int(replica.catalogue.alive.sum()) == 129
    assert replica.counters.read(np.array([KEY]), NOW_MS)[0, 0] == 2.0
    assert (replica.catalogue_offset, replica.item_state_offset) == (131, 1)
    assert fixture.reader.unreadable == 1


def test_item_state_that_was_trimmed_is_begun_again(fixture: Fixture) -> None:
    fixture.turn()
    for _ in range(5):
        fixture.put(ITEM_STATE, b"\xc1")
    fixture.log.trim(ITEM_STATE, 0, 4)
    fixture.turn()
    fixture.turn()
    assert fixture.reader.unreadable == 1 and fixture.reader.lag[ITEM_STATE] == 0


def test_it_is_ready_once_caught_up(fixture: Fixture) -> None:
    fixture.item(0)
    fixture.snapshot(2, 2.0)
    fixture.step(3, 3.0)
    assert not fixture.reader.keyring.complete
    fixture.reader.catch_up(lambda: False)
    assert fixture.reader.ready and fixture.reader.keyring.complete
    assert fixture.reader.replica.version == ("main", 0, 3) and fixture.row() == 3.0


def test_steps_follow_the_snapshot_and_stand_only_when_whole(fixture: Fixture) -> None:
    for step in range(1, 200):
        fixture.step(step, float(step))
        if step == 150:
            fixture.snapshot(150, 150.0)
    fixture.turn()
    assert fixture.reader.replica.version == ("main", 0, 199) and fixture.row() == 199.0
    late = fixture.another()
    fixture.log.trim(DELTAS, 0, 2 * 140)  # retention: the beginning is gone
    fixture.turn(late)
    assert late.replica.version == ("main", 0, 199) and fixture.row(late) == 199.0
    half = seal(Delta(line="main", epoch=0, step=200, base_step=199, part=0, parts=2))
    fixture.put(DELTAS, half)
    fixture.turn()
    assert fixture.reader.replica.step == 199


@pytest.mark.slow
def test_a_large_snapshot_is_swapped_in_within_milliseconds(fixture: Fixture) -> None:
    for i in range(2_000):
        fixture.item(i)
    fixture.turn()
    many = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 300_000)
    dims = {"features": 17, "items": 32, "users": 32}
    for epoch in (1, 2, 3):
        arrays = {"dense/averaged": fixture.reader.replica.model.read_dense()}
        for name, dim in dims.items():
            arrays[f"table/{name}/keys"] = many
            arrays[f"table/{name}/values"] = np.full((len(many), dim), epoch, np.float32)
        write_part(fixture.folder, "main", epoch, 5, 0, 1, arrays, {"step": 5})
        fixture.put(CONTROL, Live(line="main", epoch=epoch))
        fixture.item(5_000 + epoch)  # in the same batch: its vector is made from the new rows
    took_ms = []
    for _ in range(3):
        fixture.reader._live = None  # begins anew
        batch = fixture.reader.read()
        began = time.perf_counter()
        fixture.reader.apply(batch)
        took_ms.append((time.perf_counter() - began) * 1_000)
    replica = fixture.reader.replica
    assert replica.version == ("main", 3, 5) and len(replica.rows["users"]) == 300_000
    assert min(took_ms) < 15, took_ms  # building them takes ten times as long
    assert len(replica.index) == len(replica.catalogue) == 2_003


def test_other_lines_and_damaged_deltas_are_passed(fixture: Fixture) -> None:
    for step in range(1, 60):
        fixture.step(step, -1.0, line="arm-b")
        fixture.step(step, float(step))
    fixture.put(DELTAS, b"\xc1")
    fixture.snapshot(30, 30.0)
    fixture.turn()
    assert fixture.reader.replica.version == ("main", 0, 59) and fixture.row() == 59.0


def test_a_gap_waits_for_a_newer_snapshot(fixture: Fixture) -> None:
    fixture.step(1, 1.0)
    fixture.turn()
    for step in range(3, 20):
        fixture.step(step, float(step))
    fixture.turn()
    assert fixture.reader.replica.step == 1 and fixture.reader.line.gaps == 1
    fixture.turn()
    assert fixture.row() == 1.0  # what was applied stays
    fixture.snapshot(15, 15.0)
    fixture.turn()
    assert fixture.reader.replica.version == ("main", 0, 19) and fixture.row() == 19.0
    fixture.step(20, 20.0)
    fixture.turn()
    assert fixture.reader.replica.step == 20 and fixture.reader.line.gap is None


def test_a_damaged_snapshot_that_is_the_newest_leaves_a_replica_where_it_is(fixture: Fixture) -> None:
    fixture.put(CONTROL, Live(line="main", epoch=0, time_ms=1))
    fixture.snapshot(2, 2.0)
    for step in range(3, 8):
        fixture.step(step, float(step))
    fixture.turn()
    assert fixture.reader.replica.step == 7
    for step in range(9, 20):  # 8 is missing
        fixture.step(step, float(step))
    fixture.snapshot(15, 15.0)
    weights = next((fixture.folder / "main" / f"000000-{15:012d}").glob("*/arrays.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    for _ in range(3):  # none that is usable is newer than what was applied
        fixture.turn()
        assert fixture.reader.replica.step == 7 and fixture.reader.line.gap is not None
    fixture.snapshot(18, 18.0)
    fixture.turn()
    assert fixture.reader.replica.step == 19 and fixture.reader.line.gap is None


class Shards:
    """Shards that round and hold back, and whose deltas a replica follows."""

    def __init__(self, fixture: Fixture, before: "Shards | None" = None, **changes: Any) -> None:
        """``before``: shards whose snapshot these start from."""
        self.fixture = fixture
        its: dict[str, Any] = {"delta_bytes": 200, "digest_every": 4, "settle_every": 50} | changes
        self.spec = replace(spec_of(fixture.config), **its)
        publish = lambda delta: fixture.put(DELTAS, delta)  # noqa: E731
        self.client = LocalClient.fresh(self.spec, np.zeros(3, np.float32), publish)
        for shard, other in zip(self.all, before.all if before else [], strict=False):
            arrays, meta = other.export()
            shard.load([arrays], meta)
        fixture.reader.replica.model.write_dense = lambda flat: None  # type: ignore[method-assign]

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
    fixture: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_reader, "REBASED_ROWS", 25)
    shards, other = Shards(fixture), fixture.another()
    shards.learn(9)
    replica = fixture.reader.replica
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
    assert replica.step == other.replica.step == 30 and fixture.reader.line.gaps == 0
    assert replica.digest == shards.digest == other.replica.digest
    keys = np.arange(31)
    for name, store in replica.rows.items():
        assert (store.lookup(keys) == other.replica.rows[name].lookup(keys)).all()


def test_a_snapshot_that_was_removed_is_let_go_of(fixture: Fixture) -> None:
    fixture.snapshot(5, 5.0)
    fixture.turn()
    rows = fixture.reader.replica.rows
    fixture.step(6, 6.0)
    fixture.snapshot(6, 6.0)
    fixture.turn()
    assert fixture.reader.replica.step == 6 and fixture.reader.replica.rows is rows
    remove_where(fixture.folder, "main", lambda epoch, step: step == 5)
    fixture.step(7, 7.0)
    fixture.turn()
    assert fixture.reader.replica.rows is not rows and fixture.row() == 7.0
    fixture.snapshot(9, 9.0)
    remove_where(fixture.folder, "main", lambda epoch, step: step == 6)
    rows = fixture.reader.replica.rows
    fixture.turn()
    assert fixture.reader.replica.rows is rows and fixture.row() == 7.0  # never ahead of the deltas


def test_a_newer_snapshot_that_cannot_be_opened_is_tried_again(
    fixture: Fixture, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fixture.snapshot(5, 5.0)
    fixture.turn()
    fixture.step(6, 6.0)
    fixture.snapshot(6, 6.0)
    fixture.turn()
    rows = fixture.reader.replica.rows
    remove_where(fixture.folder, "main", lambda epoch, step: step == 5)
    real = line_reader.map_rows
    for step, error in ((7, OSError(24, "Too many open files")), (8, ValueError("dimensions"))):

        def fail(*args: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(line_reader, "map_rows", fail)
        fixture.step(step, float(step))
        fixture.turn()
        assert fixture.reader.replica.rows is rows and fixture.row() == step
    assert caplog.text.count("no newer snapshot could be opened") == 1
    monkeypatch.setattr(line_reader, "map_rows", real)
    fixture.turn()
    assert fixture.reader.replica.rows is not rows and fixture.row() == 8.0


def test_the_newest_intact_snapshot_is_gone_over_to(fixture: Fixture) -> None:
    fixture.snapshot(5, 5.0)
    fixture.turn()
    for step in (6, 7, 8):
        fixture.step(step, float(step))
        fixture.snapshot(step, float(step))
    fixture.turn()
    weights = next((fixture.folder / "main" / f"000000-{8:012d}").glob("*/arrays.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    remove_where(fixture.folder, "main", lambda epoch, step: step == 5)
    rows = fixture.reader.replica.rows
    fixture.turn()
    store = fixture.reader.replica.rows["features"]
    assert fixture.reader.replica.rows is not rows and fixture.row() == 8.0
    assert store._base is not None and store._base.step == 7


@pytest.mark.parametrize("fault", ["a delta never came", "a row was harmed", "a row was dropped"])
def test_what_diverged_from_the_shards_is_found_by_the_digest_and_mended(
    fixture: Fixture, fault: str
) -> None:
    shards, line = Shards(fixture), fixture.reader.line
    shards.learn(9)
    assert fixture.reader.replica.step == 9 and line.gaps == 0
    store = fixture.reader.replica.rows["features"]
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
    stood = fixture.reader.replica.step
    assert stood in (12, 16, 20)  # what was applied stays, answers go on
    shards.learn(24)
    assert fixture.reader.replica.step == stood and line.gaps == 1
    shards.snapshot()
    shards.learn(40)
    assert fixture.reader.replica.step == 40 and line.gap is None and line.gaps == 1
    assert fixture.reader.replica.digest == shards.digest


def test_another_format_of_deltas_is_followed_from_the_next_snapshot_on(fixture: Fixture) -> None:
    before = Shards(fixture)
    before.learn(9)
    shards = Shards(fixture, before, delta_format="int8")
    shards.learn(12)
    assert fixture.reader.line.gaps == 1 and fixture.reader.replica.step == 12
    shards.learn(14)
    shards.snapshot()
    shards.learn(24)
    assert fixture.reader.replica.step == 24 and fixture.reader.line.gap is None
    assert fixture.reader.replica.digest == shards.digest


def test_repeated_deltas_change_nothing(fixture: Fixture) -> None:
    for step in (1, 2, 3, 1, 2, 3, 4):
        fixture.step(step, float(step))
    fixture.turn()
    assert fixture.reader.replica.step == 4 and fixture.reader.line.gaps == 0


def test_the_live_pointer_is_followed(fixture: Fixture) -> None:
    fixture.step(1, 1.0)
    fixture.turn()
    fixture.snapshot(1, 7.0, epoch=1)
    fixture.step(2, 8.0, epoch=1)
    fixture.put(CONTROL, Live(line="main", epoch=1))
    fixture.turn()
    assert fixture.reader.replica.version == ("main", 1, 2) and fixture.row() == 8.0
    fixture.snapshot(5, 5.0, line="cand-1")
    fixture.put(CONTROL, Live(line="cand-1", epoch=0))
    fixture.turn()
    assert fixture.reader.replica.version == ("cand-1", 0, 5) and fixture.row() == 5.0


def test_the_model_is_that_of_the_epoch_and_of_the_canary(fixture: Fixture) -> None:
    """Answers go on from the old one until the new one is applied; a restarted replica has the new one."""
    fixture.step(1, 1.0)
    fixture.turn()
    size = ModelSize(dim=4, hidden=(8,))
    teacher, fixture.config = fixture.config, with_size(fixture.config, size)
    fixture.snapshot(1, 7.0, epoch=1)
    fixture.snapshot(3, 9.0, line="small")
    fixture.step(2, 8.0, epoch=1)
    fixture.put(CONTROL, Candidate(line="small", registry="r", size=size))
    fixture.put(CONTROL, Live(line="main", epoch=1, candidate="small", size=size))
    fixture.config, student = teacher, fixture.config.model
    before = fixture.reader.replica.model
    batch = fixture.reader.read()
    assert fixture.reader.replica.model is before and fixture.row() == 1.0
    fixture.reader.apply(batch)
    canary = StateReader(
        fixture.log, Replica(FEATURES, teacher), teacher, lambda: NOW_MS, pinned=("small", 0)
    )
    for reader, row in ((fixture.reader, 8.0), (fixture.another(), 8.0), (canary, 9.0)):
        fixture.turn(reader)
        assert reader.replica.model.config == student and fixture.row(reader) == row  # type: ignore[attr-defined]
        assert reader.replica.rows["features"].config.dim == size.dim + 1

    fixture.snapshot(1, 2.0, epoch=2)
    fixture.put(CONTROL, Live(line="main", epoch=2, parent_epoch=0))
    fixture.turn()
    assert fixture.reader.replica.model.config == teacher.model and fixture.row() == 2.0  # type: ignore[attr-defined]


def test_experiments_change_policies_and_bad_ones_do_not(fixture: Fixture) -> None:
    fixture.put(CONTROL, Experiments(revision=1, configs={"more": EXPERIMENT}))
    fixture.turn()
    explores = {fixture.reader.policies.resolve(f"u{i}").config.explore for i in range(50)}
    assert explores == {0.05, 0.5}
    good = fixture.reader.policies
    fixture.put(CONTROL, Experiments(revision=2, configs={"more": "arms: 7"}))
    fixture.turn()
    assert fixture.reader.policies is good and fixture.reader.unreadable == 1
    unknown = EXPERIMENT.replace("explore", "weights.skip")  # an engagement, and no label here
    fixture.put(CONTROL, Experiments(revision=3, configs={"more": unknown}))
    fixture.turn()
    assert fixture.reader.policies is good and fixture.reader.unreadable == 2
    fixture.put(CONTROL, Experiments(revision=4))
    fixture.turn()
    assert isinstance(fixture.reader.policies, Policies)
    assert fixture.reader.policies.resolve("u1").arms == {}


def test_of_many_revisions_only_the_newest_valid_one_is_parsed(
    fixture: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = list[int]()

    def parse(revision: Experiments, *others: Any) -> tuple[Experiment, ...]:
        parsed.append(revision.revision)
        return running(revision, *others)

    monkeypatch.setattr(state_reader, "running", parse)
    for number, text in enumerate([EXPERIMENT] * 50 + ["arms: 7"], 1):
        fixture.put(CONTROL, Experiments(revision=number, configs={"more": text}))
    fixture.turn()
    assert parsed == [51, 50] and fixture.reader.unreadable == 1
    assert {fixture.reader.policies.resolve(f"u{i}").config.explore for i in range(50)} == {0.05, 0.5}


def test_an_arm_that_doesnt_fit_a_surface_is_refused_before_a_request(fixture: Fixture) -> None:
    fixture.config = replace(fixture.config, surfaces={"home": {"fixed": {0: "v7"}}})
    reader = fixture.another()
    before, pins = reader.policies, EXPERIMENT.replace("explore: 0.5", "fixed.1: v7")
    fixture.put(CONTROL, Experiments(revision=1, configs={"more": pins}))
    fixture.turn(reader)
    assert reader.policies is before and reader.unreadable == 1


def test_an_experiment_grows_and_ends_between_two_requests(fixture: Fixture) -> None:
    given = []
    for stand in (
        ExperimentState(traffic=0.1),
        ExperimentState(traffic=0.5),
        ExperimentState(state="stopped"),
    ):
        said = Experiments(revision=1, configs={"more": EXPERIMENT}, states={"more": stand})
        fixture.put(CONTROL, said)
        fixture.turn()
        users = [f"u{n}" for n in range(300)]
        given.append({u for u in users if fixture.reader.policies.resolve(u).arms})
    assert 10 < len(given[0]) < 50 < 120 < len(given[1]) < 180
    assert given[0] < given[1] and given[2] == set()


def test_a_weight_of_what_is_not_predicted_is_refused_at_the_start(fixture: Fixture) -> None:
    weights = fixture.config.policy.weights | {"skip": -1.0}
    fixture.config = replace(fixture.config, policy=PolicyConfig(weights=weights))
    with pytest.raises(ValueError, match=r"policy.weights.skip is -1.0, expected .*long_view.*'watch'"):
        fixture.another()


def test_what_was_read_before_the_log_went_away_is_applied_after(
    fixture: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixture.turn()
    fixture.item(0)
    fixture.step(1, 1.0)
    read = fixture.log.read

    def away(topic: str, *rest: Any) -> Any:
        if topic == STEPS:
            raise LogUnavailable("away")
        return read(topic, *rest)

    monkeypatch.setattr(fixture.log, "read", away)
    with pytest.raises(LogUnavailable):
        fixture.reader.read()
    monkeypatch.setattr(fixture.log, "read", read)
    fixture.turn()
    assert len(fixture.reader.replica.catalogue) == 1 and fixture.reader.replica.step == 1


def step_record(number: int, stop: int, views: list[SampledView], examples: int = 40) -> Step:
    return Step(
        line="main", epoch=0, step=number, ranges=[Range(2, 0, stop)], examples=examples, lanes=4,
        time_ms=NOW_MS, config="c", views=views,
    )  # fmt: skip


def test_a_view_is_followed_to_the_step_that_learned_it(fixture: Fixture) -> None:
    fixture.turn()
    fixture.reader.freshness.acknowledged("r1", "v0", fixture.now_ms, fixture.now_ms)
    fixture.put(STEPS, step_record(1, 5, [SampledView(key_of("r1", "v0"), 2, 4)]))
    fixture.turn()
    assert len(fixture.reader.freshness.to_served) == 0
    fixture.step(1, 1.0)
    fixture.turn()
    assert fixture.reader.freshness.to_served.percentile(1.0) == 2 * 1_001
    fixture.turn()
    assert fixture.reader.examples.per_s() == pytest.approx(40 / 4, rel=0.4)


def test_views_of_a_step_that_a_snapshot_held_are_served_with_the_next(fixture: Fixture) -> None:
    reader = fixture.another()
    reader.freshness.acknowledged("r1", "v0", fixture.now_ms, fixture.now_ms)
    fixture.put(STEPS, step_record(1, 5, [SampledView(key_of("r1", "v0"), 2, 4)]))
    fixture.put(STEPS, step_record(2, 9, []))
    fixture.snapshot(1, 1.0)
    fixture.turn(reader)
    assert reader.replica.step == 1 and len(reader.freshness.to_served) == 0
    fixture.step(2, 2.0)
    fixture.turn(reader)
    assert reader.replica.step == 2 and len(reader.freshness.to_served) == 1


def test_no_example_is_read_and_yet_weights_age_while_examples_wait(
    fixture: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics, read = set[str](), fixture.log.read
    monkeypatch.setattr(fixture.log, "read", lambda topic, *rest: topics.add(topic) or read(topic, *rest))
    stale_ms = round(1000 * Config().serve.stale_s) + 1
    fixture.step(1, 1.0)
    fixture.turn()
    fixture.now_ms += 10 * stale_ms
    fixture.turn()
    assert not fixture.reader.stale(fixture.now_ms)  # none waits
    end = 1 + fixture.put(EXAMPLES, b"an example", partition=2)
    fixture.turn()
    assert not fixture.reader.stale(fixture.now_ms)
    assert fixture.reader.stale(fixture.now_ms + stale_ms)
    fixture.put(STEPS, step_record(2, end, []))
    fixture.step(2, 2.0)
    fixture.turn()
    fixture.turn()
    assert not fixture.reader.stale(fixture.now_ms + stale_ms)  # it is learned
    assert EXAMPLES not in topics and topics > {STEPS, DELTAS}


@pytest.mark.parametrize("learns", [True, False])
def test_a_candidate_that_does_not_learn_answers_for_as_long_as_it_is_the_canary(
    fixture: Fixture, learns: bool
) -> None:
    fixture.snapshot(3, 9.0, line="cand")
    fixture.put(CONTROL, Candidate(line="cand", registry="r", learns=learns))
    replica = Replica(FEATURES, fixture.config)
    clock, stale_ms = lambda: fixture.now_ms, round(1000 * fixture.config.serve.stale_s) + 1
    canary = StateReader(fixture.log, replica, fixture.config, clock, pinned=("cand", 0))
    fixture.turn(canary)
    fixture.put(EXAMPLES, b"an example")
    fixture.turn(canary)
    assert canary.stale(fixture.now_ms + stale_ms) is learns


def test_lag_and_waiting_examples_are_seen_though_the_clock_was_set_back(fixture: Fixture) -> None:
    stale_ms = round(1000 * Config().serve.stale_s) + 1
    fixture.step(1, 1.0)
    fixture.turn()
    fixture.put(EXAMPLES, b"an example", partition=2)
    fixture.now_ms += 2_000
    fixture.turn()
    fixture.now_ms -= 3_600_000
    batch = fixture.reader.read()
    assert batch.events_end is not None and batch.example_ends[2] == 1
    fixture.reader.apply(batch)
    assert not fixture.reader.stale(fixture.now_ms)
    assert fixture.reader.stale(fixture.now_ms + stale_ms)


def test_a_replica_that_starts_reads_items_before_their_counters(fixture: Fixture) -> None:
    """Else the popular would be looked for among the first few items alone."""
    last, columns = 2_499, 2 * len(FEATURES.kinds)
    for i in range(last + 1):
        fixture.item(i)
    keys = np.array([key_of("item", f"v{last}")], np.int64)
    state = ItemState(
        offsets=[0] * 4,
        keys=keys.tobytes(),
        values=np.full(columns, 2.0, np.float32).tobytes(),
        last_ms=np.array([NOW_MS], np.int64).tobytes(),
    )
    fixture.put(ITEM_STATE, b"\xc1")
    fixture.log.trim(ITEM_STATE, 0, 1)
    fixture.put(ITEM_STATE, state)
    reader = fixture.another()
    reader.catch_up(lambda: False)
    assert reader.replica.popularity.top.tolist() == [last]
    assert (reader.replica.item_state_from, reader.replica.item_state_offset) == (1, 2)


def test_that_counters_were_passed_over_is_said(fixture: Fixture) -> None:
    fixture.turn()
    for _ in range(3):
        fixture.put(ITEM_STATE, b"\xc1")
    fixture.log.trim(ITEM_STATE, 0, 2)
    fixture.turn()
    assert fixture.reader.replica.item_state_from == -1


def test_many_items_have_their_index_before_anybody_is_answered_and_later_ones_beside_it(
    tmp_path: Path,
) -> None:
    its = Fixture(tmp_path)
    its.config = replace(its.config, serve=ServeConfig(index_flat_items=150))
    for i in range(100):
        its.item(i)
    few, many = its.another(), None
    few.catch_up(lambda: False)
    for i in range(100, 400):
        its.item(i)
    many = its.another()
    many.catch_up(lambda: False)
    assert few.replica.index.name == "" != many.replica.index.name and few.ready and many.ready
    for _ in range(400):  # the reader that was there makes another, a little in each turn
        few.apply(few.read())
        if few.replica.index.name:
            break
        time.sleep(0.002)
    files = {file.stem for file in (tmp_path / "indexes").iterdir()}
    for reader in (few, many):
        name, vectors = reader.replica.index.name, reader.replica.index.vectors
        assert name.split("-")[0] in files and len(vectors) == 400
        its.item(3, removed=True)
        its.turn(reader)
        wanted = reader.replica.catalogue.living
        found = reader.replica.index.search(vectors[3].copy(), 400, wanted)[0]
        assert 3 not in found and len(found) == 399
