"""Workers as loops over a log: killed anywhere, alone and together, they give the same bits."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from parameter_server.rpc.parameter_client import LocalClient, ShardedClient, WorkerId, hello, part_of
from parameter_server.rpc.shard_service import ShardService
from parameter_server.rpc.transport import SocketChannel, SocketServer
from parameter_server.shard.lanes import LaneGradients
from parameter_server.shard.shard import digest_of_shards
from parameter_server.storage.durable_shard import DurableShard, ShardStorage
from recsys.config.system_config import Config
from recsys.events.event_types import FeatureBlock
from recsys.events.records import (
    CONTROL,
    DEAD_LETTERS,
    EVENTS,
    EXAMPLES,
    ITEMS,
    STEPS,
    DeadLetter,
    Delta,
    Example,
    Step,
    pack,
)
from recsys.features import feature_set_file as feature_sets
from recsys.log.protocol import Append, Log, LogLost
from recsys.model.model import build_model
from recsys.process.open_log import create_topics, open_log
from recsys.process.part_process import Heartbeat, Stop
from recsys.process.part_snapshot import PartState
from tests.support.training.learning_loops import (
    Clock,
    drain,
    everything,
    fresh_client,
    join,
    trained_log,
    worker,
)
from tests.support.training.small_feed import (
    DENSE,
    FEATURES,
    PARTITIONS,
    append_events,
    append_examples,
    example,
    feed,
    toy_config,
    toy_log,
)
from training import archive_part
from training.archive import writer as archive
from training.candidates import director
from training.continual.learner import Learner
from training.continual.worker import Worker
from training.joining import joiner_loop
from training.lines.line import spec_of
from training.steps import sequencer_loop
from training.steps.sequencer_loop import SequencerLoop
from training.steps.step_reader import ExampleCheck, StepReader, read_lanes, records_of

# --- the worker ---


def test_a_worker_learns_every_step_and_predicts_before_it() -> None:
    log, config, deltas = trained_log(), toy_config(), list[Delta]()
    its = worker(log, fresh_client(config, deltas), config)
    drain(its)
    assert its.step == 13 and its.counts["examples"] == 102
    first = {k: v for k, v in deltas[0].metrics.items() if k.startswith("predicted")}
    again = worker(log, fresh_client(config, repeats := list[Delta]()), config)
    again.turn()
    assert first == {k: v for k, v in repeats[0].metrics.items() if k.startswith("predicted")}
    assert sum(d.metrics["examples"] for d in deltas) == 102
    assert all(d.time_ms > 0 for d in deltas)


@pytest.mark.slow
@pytest.mark.parametrize("shards", [1, 2, 3])
def test_a_worker_restarted_anywhere_gives_the_same_bits(shards: int) -> None:
    log, config = trained_log(), toy_config(shards=shards)
    whole = fresh_client(config)
    drain(worker(log, whole, config))
    client = fresh_client(config)
    for turns in (1, 2, 3, 1, 2, 20):  # a new worker each time, with nothing but the shards
        its = worker(log, client, config)
        for _ in range(turns):
            its.turn()
    assert digest_of_shards(client.shards) == digest_of_shards(whole.shards)
    one = fresh_client(toy_config())
    drain(worker(log, one, toy_config()))
    assert digest_of_shards(one.shards) == digest_of_shards(whole.shards)


def test_a_shard_that_is_a_step_ahead_is_answered_for() -> None:
    """One shard died before it wrote the step down: the worker computes it again for that one."""
    log, config = trained_log(), toy_config(shards=2)
    whole = fresh_client(config)
    drain(worker(log, whole, config))
    client = fresh_client(config)
    its = worker(log, client, config)
    for _ in range(4):
        its.turn()
    behind = fresh_client(config)
    other = worker(log, behind, config)
    for _ in range(3):
        other.turn()
    mixed = LocalClient([client.shards[0], behind.shards[1]])
    assert sorted(mixed.applied_steps()) == [3, 4]
    drain(worker(log, mixed, config))
    assert digest_of_shards(mixed.shards) == digest_of_shards(whole.shards)


def test_what_cant_be_learned_from_is_left_out_once_and_for_ever(tmp_path: Path) -> None:
    good = [example(n) for n in range(6)]
    features = good[0].features
    assert features is not None
    nan = np.full(DENSE, np.nan, np.float32).tobytes()
    bad = [
        example(6, features=None),
        example(7, features=FeatureBlock(feature_set="other")),
        example(8, features=FeatureBlock(**(fields(features) | {"dense": nan}))),
        example(9, features=FeatureBlock(**(fields(features) | {"item_keys": b"12345678"}))),
        example(10, labels=[1.0]),
        example(11, labels=[float("nan"), 0.0]),
        example(12, watch_ms=-5),
        example(13, correction=True, previous=[1.0]),
        example(14, sampled_out=True, previous=[1.0]),
        example(15, arrived=[0.0, 1.0]),
        example(16, arrived=[1.0]),
        example(17, sampling_rate=0.0),
        example(18, correction=True, previous=[0.0, 0.0], arrived=[float("nan"), 1.0]),
    ]
    log, clock, config = toy_log(), Clock(), toy_config(examples=100)
    append_examples(log, good + bad)
    log.append(EXAMPLES, [Append(0, b"", b"\xc1rubbish")])
    loop = SequencerLoop(log, config, FEATURES, clock)
    loop.turn()
    clock.now_ms = 1_000
    loop.turn()
    client, deltas = fresh_client(config, deltas := list[Delta]()), deltas
    its = worker(log, client, config)
    assert its.turn() == 20
    assert (its.counts["examples"], its.counts["left_out"]) == (6, 14)
    assert (deltas[0].metrics["examples"], deltas[0].metrics["left_out"]) == (6, 14)
    letters = everything(log, DEAD_LETTERS, DeadLetter)[0]
    assert {(x.topic, x.partition, x.offset) for x in letters} == {
        (EXAMPLES, p, o)
        for p in range(PARTITIONS)
        for o in range(log.end(EXAMPLES, p))
        if (p, o) not in {(n % PARTITIONS, n // PARTITIONS) for n in range(6)}
    }
    assert len(letters) == 14
    assert all(np.isfinite(shard.dense.values).all() for shard in client.shards if shard.dense)


def fields(block: FeatureBlock) -> dict:
    return {name: getattr(block, name) for name in block.__struct_fields__}


def test_only_own_lanes_are_read_and_together_they_are_everything() -> None:
    log = trained_log()
    step = StepReader(log, "main", 0).record(2)
    assert step is not None
    check = ExampleCheck(FEATURES, DENSE)
    whole = read_lanes(log, step, range(4), check)
    odd = read_lanes(log, step, range(1, 4, 2), check)
    assert odd == {1: whole[1], 3: whole[3]}
    places = [(e.partition, e.offset) for lane in range(4) for e in whole[lane].examples]
    assert places == sorted(places) and len(places) == step.examples
    assert len(records_of(log, step)) == step.examples


def test_a_step_fills_its_first_lanes_alone() -> None:
    log, check = log_of_mixed_lanes(), ExampleCheck(FEATURES, DENSE)
    for step in everything(log, STEPS, Step)[0]:
        lanes = [lane.examples for lane in read_lanes(log, step, range(4), check).values()]
        filled = step.filled or 4
        assert sum(map(len, lanes)) == step.examples and not any(lanes[filled:])
        assert len(lanes) == 4 and (step.examples < filled or all(lanes[:filled]))


def test_a_step_whose_examples_are_gone_is_not_guessed() -> None:
    log, config = trained_log(), toy_config()
    log.trim(EXAMPLES, 0, 4)
    with pytest.raises(LogLost):
        worker(log, fresh_client(config), config).turn()


def test_a_step_of_other_lanes_says_what_to_do() -> None:
    log, config = trained_log(), toy_config()
    other = replace(config, step=replace(config.step, lanes=2))
    with pytest.raises(ValueError, match="set step.lanes to 4"):
        worker(log, fresh_client(other), other).turn()


# --- workers together ---


def by_hand(log: Log, config: Config) -> str:
    """The digest after every step, lane by lane, each with a lookup of its own."""
    client, learner = fresh_client(config), Learner(build_model(FEATURES, config.model))
    check = ExampleCheck(FEATURES, DENSE)
    for step in everything(log, STEPS, Step)[0]:
        sent = []
        for number, read in read_lanes(log, step, range(4), check).items():
            if not read.examples:
                sent.append(LaneGradients(number))
                continue
            lane = learner.prepare(read.examples)
            rows = client.lookup(step.step - 1, lane.lookup.keys)
            out = learner.learn(lane, rows, client.dense(step.step - 1))
            sent.append(LaneGradients(number, out.gradients, out.dense, out.metrics))
        client.exchange(step.step, step.time_ms, sent, None)
    return digest_of_shards(client.shards)


def log_of_mixed_lanes() -> Log:
    """The trained log, where each step fills another number of its lanes."""
    log, trained = toy_log(), trained_log()
    for partition in range(PARTITIONS):
        records = trained.read(EXAMPLES, partition, 0, 1_000)
        log.append(EXAMPLES, [Append(partition, r.key, r.value) for r in records])
    steps: list[Step] = everything(trained, STEPS, Step)[0]
    for step in steps:
        record = msgspec.structs.replace(step, filled=step.step % 5)
        log.append(STEPS, [Append(0, b"main", pack(record))])
    return log


@pytest.mark.parametrize(
    ("workers", "parts", "make"),
    [(workers, 2, trained_log) for workers in (1, 2, 3)]
    + [(*cell, log_of_mixed_lanes) for cell in product((1, 2, 4), repeat=2)],
)
def test_workers_over_sockets_learn_what_is_computed_by_hand(
    tmp_path: Path, workers: int, parts: int, make: Callable[[], Log]
) -> None:
    config = toy_config(shards=parts)
    log, model = make(), build_model(FEATURES, config.model)
    spec = spec_of(config)
    shards, servers = [], []
    for part in range(parts):
        home = ShardStorage(tmp_path / "snapshots", tmp_path / f"{part}.wal", 5, 2)
        dense = model.read_dense() if part == 0 else None
        shards.append(DurableShard(part_of(spec, part), home, lambda deltas: None, dense))
        servers.append(SocketServer(ShardService(shards[-1], "t", 20)))
    errors: list[Exception] = []

    def work(rank: int) -> None:
        ident = WorkerId(rank, workers, 1)
        channels = [
            SocketChannel(lambda s=s: s.address, lambda t, p=p: hello(spec, p, ident, t))
            for p, s in enumerate(servers)
        ]
        client = ShardedClient(spec, channels, ident)
        learner = Learner(build_model(FEATURES, config.model))
        its = Worker(rank, workers, log, client, learner, config)
        try:
            drain(its)
        except Exception as error:
            errors.append(error)
        client.close()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for server, shard in zip(servers, shards, strict=True):
        server.close()
        shard.close()
    assert not errors and shards[0].applied == 13
    assert digest_of_shards([shard.shard for shard in shards]) == by_hand(log, toy_config())


# --- all together ---


def test_from_events_to_weights_in_lockstep() -> None:
    log, clock, config = toy_log(), Clock(), toy_config(examples=16)
    joiner, cutter = join(log), SequencerLoop(log, config, FEATURES, clock)
    client = fresh_client(config)
    its = worker(log, client, config)
    for start in range(0, 120, 20):
        append_events(log, feed(20, first=start))
        clock.now_ms += 300
        while joiner.turn() + cutter.turn() + its.turn():
            pass
    clock.now_ms += 300
    while cutter.turn() + its.turn():
        pass
    made = sum(map(len, everything(log, EXAMPLES, Example)))
    assert its.counts["examples"] == made > 100
    assert client.applied_steps() == [cutter.step]


# --- the parts ---


def test_the_parts_run_over_one_log_and_stop_when_asked(tmp_path: Path) -> None:
    config = toy_config(str(tmp_path))
    config = replace(config, log=replace(config.log, partitions=PARTITIONS))
    feature_sets.write_feature_set(config, FEATURES)
    log = open_log(config)
    create_topics(log, config)
    for topic in (EVENTS, ITEMS, STEPS):
        log.append(topic, [Append(0, b"", b"\xc1rubbish")])
    bodies = {
        "joiner": joiner_loop.run,
        "sequencer": sequencer_loop.run,
        "archive": archive_part.run,
        "director": director.run,
    }
    stops = {name: Stop(Heartbeat(name)) for name in bodies}
    parts = [threading.Thread(target=bodies[name], args=(config, stops[name])) for name in bodies]
    for part in parts:
        part.start()
    append_events(log, feed(40))
    until = time.monotonic() + 20
    while not (
        stops["sequencer"].heartbeat.now().counters.get("steps", 0) >= 8
        and sum(stops["archive"].heartbeat.now().offsets.get(EXAMPLES, [])) > 60
        and log.end(DEAD_LETTERS, 0) >= 3
    ):
        assert time.monotonic() < until, {n: s.heartbeat.now() for n, s in stops.items()}
        time.sleep(0.02)
    for stop in stops.values():
        stop.set()
    for part in parts:
        part.join(20)
    beats = {name: stop.heartbeat.now() for name, stop in stops.items()}
    made = sum(log.end(EXAMPLES, p) for p in range(PARTITIONS))
    assert beats["joiner"].counters["examples"] + beats["joiner"].counters["corrections"] == made
    assert beats["joiner"].gauges["pending"] > 0 and beats["sequencer"].gauges["step"] >= 8
    assert 60 < archive.read_archive(tmp_path / "archive", EXAMPLES).count_rows() <= made
    controls = [msgspec.msgpack.decode(r.value)["type"] for r in log.read(CONTROL, 0, 0)]
    assert controls.count("live") == 1
    letters = everything(log, DEAD_LETTERS, DeadLetter)[0]
    assert sorted(letter.topic for letter in letters) == [EVENTS, ITEMS, STEPS]
    assert PartState(tmp_path, "joiner").load(log.id) is not None
    log.close()


def test_a_worker_computes_on_one_thread() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        worker(trained_log(8), fresh_client(toy_config()), toy_config())
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
