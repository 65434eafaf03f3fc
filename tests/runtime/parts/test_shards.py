"""The part that looks after the shards: whose Ray it is decides what it leaves behind."""

import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from parameter_server.shard.shard import ShardSpec
from recsys.config.system_config import Config
from recsys.features.feature_set_file import feature_set
from recsys.log.protocol import LogUnavailable
from recsys.model.model import build_model
from recsys.process.open_log import create_topics, open_log
from recsys.process.part_process import Stop
from runtime.parts import shards
from runtime.supervision import launch_plan as plans
from tests.support.plan_config import FREE


@pytest.mark.parametrize(
    "address, answers, ended",
    [("", True, True), ("", False, False), ("10.0.0.1:6379", True, True), ("10.0.0.1:6379", False, True)],
)
def test_the_actors_are_stopped_with_the_part_but_where_our_own_head_is_gone(
    tmp_path, monkeypatch, address, answers, ended
):
    import ray

    config, plan = plans.resolve(replace(Config(), state=str(tmp_path), serve=FREE), ray_address=address)
    plans.write(config, plan)
    stop, said = Stop(), []
    asked = iter([True, answers])

    class ShardGroup:
        statuses, started, epoch, step = (), 1, 0, 0

        def __init__(self, *_):
            pass

        @classmethod
        def of(cls, *_):
            return cls()

        def build(self):
            pass

        def prepare(self):
            said.append("prepared")

        def start(self):
            stop.set()
            return True

        def poll(self):
            return next(asked)

        answers = poll

        def end(self):
            said.append("ended")

    monkeypatch.setattr(shards, "ShardGroup", ShardGroup)
    log = open_log(config)
    create_topics(log, config)
    log.close()
    before = signal.getsignal(signal.SIGTERM)
    # Ray's driver takes the signal by which a part is asked to stop.
    monkeypatch.setattr(ray, "init", lambda **_: signal.signal(signal.SIGTERM, signal.SIG_IGN))
    monkeypatch.setattr(ray, "shutdown", lambda: said.append("left"))
    try:
        shards.run(config, stop)
        assert signal.getsignal(signal.SIGTERM) == before
    finally:
        signal.signal(signal.SIGTERM, before)
    assert said == ["prepared", *(["ended"] if ended else []), "left"]


def test_shards_are_looked_after_while_the_log_is_unavailable(tmp_path, monkeypatch):
    import ray

    config, plan = plans.resolve(replace(Config(), state=str(tmp_path), serve=FREE))
    plans.write(config, plan)
    stop, polls = Stop(), []
    monkeypatch.setattr(stop, "wait", lambda seconds, starting=False: stop.is_set())
    turn, turns = shards.ControlReader.turn, []

    def fail_once(control):
        turns.append(control)
        if len(turns) == 2:  # the first in the loop
            raise LogUnavailable("a broker fails over")
        return turn(control)

    def poll():
        polls.append(len(turns))
        if len(turns) == 3:
            stop.set()
        return True

    group = SimpleNamespace(
        statuses=(), started=1, epoch=0, step=0, build=lambda: None, prepare=lambda: None,
        start=lambda: True, poll=poll, answers=lambda: True, end=lambda: None,
    )  # fmt: skip
    monkeypatch.setattr(shards, "ShardGroup", SimpleNamespace(of=lambda *_: group))
    monkeypatch.setattr(shards.ControlReader, "turn", fail_once)
    monkeypatch.setattr(ray, "init", lambda **_: None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    log = open_log(config)
    create_topics(log, config)
    log.close()
    shards.run(config, stop)
    assert polls == [1, 2, 3] and stop.heartbeat.now().counters["retries"] == 1


def test_shards_that_could_not_start_have_not_answered(monkeypatch):
    group = object.__new__(shards.ShardGroup)
    group._spec, group._handles, group.started = ShardSpec((), 1, parts=2), [], 0
    group._config, group._dense = Config(), SimpleNamespace(result=lambda: None)

    def fails(*_):
        raise ValueError("the log is away")

    monkeypatch.setattr(shards, "find_shards", fails)
    monkeypatch.setattr(shards, "start_shards", fails)
    assert not group.start() and not group.poll() and group.answers()


def test_what_is_wrong_with_a_shard_is_logged_once(caplog):
    def turn(before, lost="", error=""):
        both = [
            {"part": 0, "lost": "", "snapshot_error": "", "wal_damaged": ""},
            {"part": 1, "lost": lost, "snapshot_error": error, "wal_damaged": ""},
        ]
        return shards.log_errors(both, before)

    flaws = turn({}, "snapshot 10")
    for _ in range(3):
        flaws = turn(flaws, "snapshot 10")
    flaws = turn(flaws, "snapshot 10", "disk full")
    flaws = turn(turn(flaws), "snapshot 10")
    texts = [record.getMessage() for record in caplog.records]
    assert texts == ["shard 1: snapshot 10", "shard 1: snapshot 10 disk full", "shard 1: snapshot 10"]


def test_the_heartbeat_says_what_each_table_holds_and_let_go(tmp_path):
    from parameter_server.rpc.parameter_client import part_of
    from parameter_server.shard.lanes import LaneGradients, RowGradients
    from parameter_server.storage.durable_shard import DurableShard, ShardStorage
    from recsys.config.system_config import TableConfig
    from recsys.process.part_process import Heartbeat

    tables = (TableConfig("a", 8, 0.1, budget_mb=0.005), TableConfig("b", 8, 0.1, admit_after=2))
    statuses = []
    for part in (0, 1):
        home = ShardStorage(tmp_path / "snapshots", tmp_path / f"{part}.wal")
        shard = DurableShard(part_of(ShardSpec(tables, 1, parts=2), part), home, lambda _: None)
        for step in (1, 2):
            keys = np.arange(step * 60, step * 60 + 50)
            rows = RowGradients(keys, np.ones((50, 8), np.float32), np.ones(50, np.int32))
            shard.learn(step, step, [LaneGradients(0, {"a": rows, "b": rows})])
        told = {"connections": 2 + part, "refused_connections": 0}
        statuses.append(shard.status() | told)
        shard.close()
    beat = Heartbeat("shards")
    shards.report(beat, statuses)
    said = beat._beat.gauges
    assert said["connections"] == 2
    assert said["evicted"] > 0 and said["evicted"] + said["rows.a"] <= 200
    assert said["rows"] == said["rows.a"] + said["rows.b"] and said["rows.b"] == 0
    assert said["waiting"] == said["waiting.b"] > 0 == said["waiting.a"]
    assert 0 < said["table_bytes.a"] <= 2 * 0.005 * 2**20


@pytest.mark.slow
def test_initial_parameters_of_another_process_are_the_model_s() -> None:
    config = replace(Config().model, features="ids", dim=4)
    features = feature_set(replace(Config(), model=config))
    dense = shards.initial_dense(features, config)
    assert dense.tobytes() == build_model(features, config).read_dense().tobytes()


@pytest.mark.slow
def test_a_ranker_that_cannot_be_loaded_is_named() -> None:
    model = replace(Config().model, features="ids", dim=4)
    features = feature_set(replace(Config(), model=model))
    config = replace(Config(), model=replace(model, ranker="missing_ranker@2"))
    group = shards.ShardGroup(config, ShardSpec((), 1), features)
    with pytest.raises(RuntimeError, match=r"can't be built \(exit status 1\): .*missing_ranker"):
        group.prepare()  # whose error ends the part
