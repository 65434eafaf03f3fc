"""Joiner, sequencer and worker as loops over a log: crashes and failures are inputs, results are exact."""

import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace as replace_struct

from parameter_server.durable import DurableShard, Home
from parameter_server.lanes import LaneGradients, RowGradients
from parameter_server.parameter_client import LocalClient, ShardedClient, hello, part_of
from parameter_server.parameter_client import Worker as WorkerId
from parameter_server.shard import ShardSpec, digest_of_shards
from parameter_server.shard_service import ShardService
from parameter_server.snapshots import write_part
from parameter_server.transport import SocketChannel, SocketServer
from recsys import blueprint
from recsys.blueprint import build_model
from recsys.config import Config
from recsys.events import Engagement, FeatureBlock, Tick, User, decode, encode
from recsys.hashing import partition_of
from recsys.log import Append, Log, LogLost, LogUnavailable, MemoryLog, Record
from recsys.loops import Heartbeat, Stop
from recsys.open_log import create_topics, open_log
from recsys.part_state import PartState
from recsys.records import (
    CONTROL,
    DEAD_LETTERS,
    EVENTS,
    EXAMPLES,
    ITEMS,
    STEPS,
    DeadLetter,
    Delta,
    Example,
    Live,
    Range,
    Step,
    pack,
    topics,
    unpack,
)
from recsys.ticker import Idle, Ticker
from tests.toy_feed import (
    DENSE,
    FEATURES,
    PARTITIONS,
    START_MS,
    append_events,
    append_examples,
    example,
    feed,
    toy_config,
    toy_log,
)
from training import archive, director, joiner_loop, sequencer_loop
from training.director import Director
from training.erasure import erase_records
from training.joiner_loop import JoinerLoop, sequences_after
from training.learner import Learner
from training.line import spec_of
from training.sequencer_loop import SequencerLoop
from training.step_reader import ExampleCheck, StepReader, read_lanes, records_of
from training.worker import Worker, examples_behind


class Clock:
    """Milliseconds that a test moves."""

    def __init__(self) -> None:
        self.now_ms = 0

    def __call__(self) -> int:
        return self.now_ms


class FlakyLog(MemoryLog):
    """Fails some appends: nothing, a part or all of them was committed."""

    def __init__(self) -> None:
        super().__init__()
        self.fail: dict[str, list[int]] = {}  # topic -> how many records get through, by failure
        self.away = 0  # how many reads of examples fail

    def append(self, topic: str, records: Sequence[Append]) -> list[int]:
        if self.fail.get(topic):
            super().append(topic, records[: self.fail[topic].pop(0)])
            raise LogUnavailable(f"{topic} is away")
        return super().append(topic, records)

    def read(self, topic: str, partition: int, offset: int, limit: int = 1000) -> list[Record]:
        if self.away and topic == EXAMPLES:
            self.away -= 1
            raise LogUnavailable(f"{topic} is away")
        return super().read(topic, partition, offset, limit)


def everything(log: Log, topic: str, kind: type) -> list[list]:
    return [
        [unpack(r.value, kind) for r in log.read(topic, p, log.begin(topic, p), 100_000)]
        for p in range(log.partitions(topic))
    ]


def drain(part: JoinerLoop | SequencerLoop | Worker) -> None:
    while part.turn():
        pass


def join(log: Log, state: PartState | None = None, clock: Clock | None = None) -> JoinerLoop:
    return JoinerLoop(log, toy_config(), FEATURES, clock or Clock(), state)


# --- the joiner ---


def expected_examples(requests: int) -> list[list[Example]]:
    log = toy_log()
    append_events(log, feed(requests))
    drain(join(log))
    return everything(log, EXAMPLES, Example)


def test_examples_lie_in_the_partition_of_their_events() -> None:
    found = expected_examples(40)
    assert sum(map(len, found)) > 40
    for partition, examples in enumerate(found):
        assert {e.partition for e in examples} <= {partition}
        assert [e.sequence for e in examples] == list(range(1, len(examples) + 1))


@pytest.mark.parametrize("save", [True, False])
def test_a_joiner_killed_anywhere_neither_loses_nor_repeats(tmp_path: Path, save: bool) -> None:
    log, events = toy_log(), feed(60)
    for start in range(0, len(events), 7):
        append_events(log, events[start : start + 7])
        loop = join(
            log, PartState(tmp_path, "joiner")
        )  # as after kill -9: nothing but the snapshot
        loop.turn()
        if save and start % 3 == 0:
            loop.save()
    drain(join(log, PartState(tmp_path, "joiner")))
    assert everything(log, EXAMPLES, Example) == expected_examples(60)


@pytest.mark.parametrize("through", [0, 1, 3, 1000])
def test_an_append_that_fails_halfway_is_finished(through: int) -> None:
    log = FlakyLog()
    for topic, partitions in ((EVENTS, PARTITIONS), (EXAMPLES, PARTITIONS), (DEAD_LETTERS, 1)):
        from recsys.log import Topic

        log.create(Topic(topic, partitions))
    append_events(log, feed(60))
    log.fail[EXAMPLES] = [through]
    loop = join(log)
    with pytest.raises(LogUnavailable):
        drain(loop)
    drain(loop)
    assert everything(log, EXAMPLES, Example) == expected_examples(60)


def test_what_is_no_event_goes_to_dead_letters_once(tmp_path: Path) -> None:
    log = toy_log()
    log.append(EVENTS, [Append(1, b"", b"\xc1rubbish")])
    append_events(log, feed(5))
    for _ in range(3):
        loop = join(log, PartState(tmp_path, "joiner"))
        drain(loop)
    letters = everything(log, DEAD_LETTERS, DeadLetter)[0]
    assert [(x.topic, x.partition, x.offset, x.raw) for x in letters] == [
        (EVENTS, 1, 0, b"\xc1rubbish")
    ]
    assert loop.counts()["unreadable"] == 1 and "MessagePack" in letters[0].reason


def test_it_saves_by_its_clock_and_holds_the_log_behind_it(tmp_path: Path) -> None:
    log, clock = toy_log(), Clock()
    append_events(log, feed(20))
    loop = join(log, PartState(tmp_path, "joiner"), clock)
    loop.turn()
    assert not list(tmp_path.rglob("*.msgpack"))
    clock.now_ms = 5_000
    loop.turn()
    assert log.holds(EVENTS, 0) == {
        "joiner": 0
    }  # from its first impression, which may be read again
    append_events(log, [Tick(time_ms=START_MS + 10_000_000)])
    for now_ms in (10_000, 15_000):  # what is needed of the snapshot before is kept
        clock.now_ms = now_ms
        loop.turn()
    assert log.holds(EVENTS, 0) == {"joiner": log.end(EVENTS, 0)}
    again = join(log, PartState(tmp_path, "joiner"))
    assert again.offsets == loop.offsets and again.counts()["examples"] > 0


def late_likes(log: MemoryLog) -> list[Append]:
    """A like of each viewed item of the log's events, after the windows and before the horizons."""
    likes = []
    for partition in range(PARTITIONS):
        for record in log.read(EVENTS, partition, log.begin(EVENTS, partition)):
            event = decode(record.value)
            if isinstance(event, Engagement) and event.kind == "view":
                like = msgspec.structs.replace(
                    event, kind="like", time_ms=START_MS + 600_000, watch_ms=None
                )
                likes.append(Append(partition, record.key, encode(like)))
    return likes


def test_impressions_are_read_again_from_the_log_that_is_held_for_them(tmp_path: Path) -> None:
    log, clock = toy_log(), Clock()
    append_events(log, [*feed(20), Tick(time_ms=START_MS + 500_000)])
    loop = join(log, PartState(tmp_path, "joiner"), clock)
    loop.turn()
    loop.save()
    likes = late_likes(log)
    for partition in range(PARTITIONS):
        log.trim(EVENTS, partition, log.end(EVENTS, partition))  # as far as it may
    log.append(EVENTS, likes)
    again = join(log, PartState(tmp_path, "joiner"))
    drain(again)
    counts = again.counts()
    assert counts["corrections"] > 10 and counts["lost"] == 0 == counts["unmatched"]
    corrected = [e for part in everything(log, EXAMPLES, Example) for e in part if e.correction]
    assert all(e.features is not None and e.previous != e.labels for e in corrected)


def test_a_log_that_lost_impressions_costs_their_corrections_alone(tmp_path: Path) -> None:
    log = toy_log()
    append_events(log, [*feed(20), Tick(time_ms=START_MS + 500_000)])
    loop = join(log, PartState(tmp_path, "joiner"))
    loop.turn()
    likes = late_likes(log)
    for partition in range(PARTITIONS):
        log.trim(EVENTS, partition, log.end(EVENTS, partition) - 1)
    before = loop.counts()
    log.append(EVENTS, likes)
    drain(loop)
    counts = loop.counts()
    assert counts["lost"] > 10 and counts["corrections"] == before["corrections"]
    loop.save()  # holds what is left


def test_a_hold_that_retention_overtook_is_held_where_the_log_begins(tmp_path: Path) -> None:
    class Unheld(MemoryLog):
        """As Kafka: nothing can be held there, it only checks."""

        def hold(self, name: str, topic: str, partition: int, offset: int) -> None:
            super().hold(name, topic, partition, offset)
            self.release(name, topic)

    log = Unheld()
    for topic in topics(PARTITIONS):
        log.create(topic)
    append_events(log, feed(20))
    loop = join(log, PartState(tmp_path, "joiner"))
    loop.turn()
    loop.save()
    for partition in range(PARTITIONS):
        log.trim(EVENTS, partition, log.end(EVENTS, partition))
    loop.save()  # what this one holds, the log no longer has
    assert not loop.turn()


def test_a_log_that_is_away_while_it_goes_back_loses_nothing(tmp_path: Path) -> None:
    log = FlakyLog()
    for topic in topics(PARTITIONS):
        log.create(topic)
    append_events(log, feed(60))
    loop = join(log, PartState(tmp_path, "joiner"))
    log.fail[EXAMPLES] = [1]
    log.away = 2  # reads, after that
    for _ in range(3):
        with pytest.raises(LogUnavailable):
            drain(loop)
        loop.save()  # as a part does that is stopped now: half a turn must not be saved
    drain(loop)
    assert everything(log, EXAMPLES, Example) == expected_examples(60)
    drain(join(log, PartState(tmp_path, "joiner")))
    assert everything(log, EXAMPLES, Example) == expected_examples(60)


def test_a_snapshot_of_another_version_says_what_to_do(tmp_path: Path) -> None:
    log = toy_log()
    loop, state = join(log, PartState(tmp_path, "joiner")), PartState(tmp_path, "joiner")
    loop.save()
    saved = state.load(log.id)
    assert saved is not None
    packed = msgspec.msgpack.decode(saved.blob)
    packed["joiners"] = dict.fromkeys(packed["joiners"], msgspec.msgpack.encode({"open": {}}))
    state.save(log.id, saved.offsets, msgspec.msgpack.encode(packed))
    with pytest.raises(ValueError, match="remove that folder"):
        join(log, PartState(tmp_path, "joiner"))


def test_the_snapshot_of_another_log_is_refused(tmp_path: Path) -> None:
    join(toy_log(), PartState(tmp_path, "joiner")).save()
    with pytest.raises(LogLost, match="remove .*joiner"):
        join(toy_log(), PartState(tmp_path, "joiner"))


def test_without_snapshot_and_beginning_it_goes_on_from_the_end() -> None:
    log = toy_log()
    append_events(log, feed(30))
    drain(join(log))
    before = everything(log, EXAMPLES, Example)
    for partition in range(PARTITIONS):
        log.trim(EVENTS, partition, 5)
    loop = join(log)
    assert loop.skipped == sum(log.end(EVENTS, p) - 5 for p in range(PARTITIONS))
    append_events(log, feed(30, first=1000))
    drain(loop)
    for old, now in zip(before, everything(log, EXAMPLES, Example), strict=True):
        assert now[: len(old)] == old and len(now) > len(old)
        assert [e.sequence for e in now] == list(range(1, len(now) + 1))


@pytest.mark.parametrize("passed", [True, False])
def test_joining_anew_after_an_erasure_loses_no_example_of_others(
    tmp_path: Path, passed: bool
) -> None:
    """``passed``: the erasure is done; else its first pass alone, which took events and no examples."""
    log, state = toy_log(), PartState(tmp_path, "joiner")
    append_events(log, feed(30))
    user, partition = "u3", partition_of("u3", PARTITIONS)
    gone = User(time_ms=START_MS + 1_000_000, user_id=user, removed=True)
    (offset,) = log.append(EVENTS, [Append(partition, user.encode(), encode(gone))])
    loop = join(log, state)
    drain(loop)
    loop.save()
    for topic in (EVENTS, EXAMPLES) if passed else (EVENTS,):
        assert erase_records(log, topic, partition, user.encode(), offset, 1 << 60)
    shutil.rmtree(state.folder)
    loop = join(log, PartState(tmp_path, "joiner"))
    end = log.end(EXAMPLES, partition)
    more = feed(30, first=100_000)
    append_events(log, more)
    drain(loop)
    found = [
        msgspec.msgpack.decode(r.value)["sequence"]
        for r in log.read(EXAMPLES, partition, 0, 10_000)
    ]
    assert found == list(range(1, len(found) + 1))
    calm = toy_log()
    append_events(calm, more)
    drain(join(calm))
    assert log.end(EXAMPLES, partition) - end == calm.end(EXAMPLES, partition) > 0


def test_a_request_to_be_forgotten_alone_is_joined_again_from_the_beginning() -> None:
    log = toy_log()
    append_events(log, feed(30))
    gone = User(time_ms=START_MS + 1_000_000, user_id="u3", removed=True)
    log.append(EVENTS, [Append(partition_of("u3", PARTITIONS), b"u3", encode(gone))])
    drain(join(log))
    assert join(log).skipped == 0


def test_sequences_are_read_backwards_only_as_far_as_needed() -> None:
    log = toy_log()
    append_examples(log, [example(3 * n, sequence=n + 1) for n in range(2500)])
    assert sequences_after(log, 0, 2490) == set(range(2491, 2501))
    assert sequences_after(log, 0, 0) == set(range(1, 2501))
    assert sequences_after(log, 1, 0) == set()


def test_where_the_schema_says_that_all_was_shown_there_are_negatives() -> None:
    log = toy_log()
    append_events(log, feed(10))
    schema = replace(FEATURES.schema, shown_by="impression")
    loop = JoinerLoop(log, toy_config(), replace(FEATURES, schema=schema), Clock())
    drain(loop)
    assert loop.counts()["never_shown"] == 0 and loop.counts()["examples"] == 30


# --- the sequencer ---


def sequence(log: Log, clock: Clock) -> SequencerLoop:
    return SequencerLoop(log, toy_config(), FEATURES, clock)


def test_steps_cover_all_examples_once_whenever_the_sequencer_is_killed() -> None:
    log, clock = toy_log(), Clock()
    for start in range(0, 120, 10):
        append_examples(log, [example(n) for n in range(start, start + 10)])
        loop = sequence(log, clock)
        loop.turn()
        clock.now_ms += 130
        loop.turn()
    clock.now_ms += 1_000
    loop.turn()
    steps: list[Step] = everything(log, STEPS, Step)[0]
    assert [step.step for step in steps] == list(range(1, len(steps) + 1))
    covered = [
        (part.partition, offset)
        for step in steps
        for part in step.ranges
        for offset in range(part.start, part.stop)
    ]
    assert len(covered) == len(set(covered)) == 120 == sum(step.examples for step in steps)
    assert loop.waiting == 0


@pytest.mark.parametrize("through", [0, 1, 100])
def test_steps_whose_append_failed_are_cut_again(through: int) -> None:
    log, clock = FlakyLog(), Clock()
    from recsys.log import Topic

    log.create(Topic(EXAMPLES, PARTITIONS))
    log.create(Topic(STEPS))
    append_examples(log, [example(n) for n in range(40)])
    log.fail[STEPS] = [through]
    loop = sequence(log, clock)
    with pytest.raises(LogUnavailable):
        loop.turn()
    clock.now_ms = 1_000
    drain(loop)
    clock.now_ms = 2_000
    loop.turn()
    steps: list[Step] = everything(log, STEPS, Step)[0]
    assert sum(step.examples for step in steps) == 40
    assert [step.step for step in steps] == list(range(1, len(steps) + 1))


def test_it_finds_partitions_that_no_recent_step_touched() -> None:
    log, clock = toy_log(), Clock()
    append_examples(log, [example(n) for n in range(9)])
    clock.now_ms = 1_000
    loop = sequence(log, clock)
    loop.turn()
    clock.now_ms += 1_000
    loop.turn()
    for n in range(300):
        append_examples(log, [example(3 * n)] * 8)
        drain(loop)
    again = sequence(log, clock)
    assert again.offsets == loop.offsets and again.step == loop.step > 300


def test_a_line_that_is_another_has_steps_of_its_own() -> None:
    log, clock = toy_log(), Clock()
    append_examples(log, [example(n) for n in range(16)])
    sequence(log, clock).turn()
    other = SequencerLoop(log, toy_config(), FEATURES, clock, line="cand-1")
    other.turn()
    steps = everything(log, STEPS, Step)[0]
    assert [(s.line, s.step) for s in steps] == [
        ("main", 1),
        ("main", 2),
        ("cand-1", 1),
        ("cand-1", 2),
    ]
    reader = StepReader(log, "cand-1", 0)
    assert (
        reader.record(2) == steps[3] and reader.record(1) == steps[2] and reader.record(3) is None
    )


def test_a_step_is_found_wherever_it_stands() -> None:
    log = toy_log()
    records = [step_of(line, n) for n in range(1, 400) for line in ("main", "cand-1")]
    log.append(STEPS, [Append(0, b"", pack(record)) for record in records])
    for wanted in (1, 2, 63, 64, 65, 200, 399):
        found = StepReader(log, "cand-1", 0).record(wanted)
        assert found is not None and (found.line, found.step) == ("cand-1", wanted)
    reader = StepReader(log, "main", 0)
    assert reader.record(400) is None
    log.append(STEPS, [Append(0, b"", pack(step_of("main", 400)))])
    assert reader.record(400) is not None and reader.record(3) is not None


def step_of(line: str, number: int) -> Step:
    return Step(
        line=line, epoch=0, step=number, ranges=[], examples=0, lanes=4, time_ms=0, config=""
    )


# --- the worker ---


def trained_log(examples: int = 100) -> MemoryLog:
    """A log with examples cut into steps; the last step has as many as lanes leave empty."""
    log, clock = toy_log(), Clock()
    append_examples(log, [example(n) for n in range(examples)])
    loop = sequence(log, clock)
    drain(loop)
    append_examples(log, [example(n) for n in range(2)])
    loop.turn()
    clock.now_ms = 500
    loop.turn()
    return log


def fresh_client(config: Config, published: list[Delta] | None = None) -> LocalClient:
    spec: ShardSpec = spec_of(config)
    dense = build_model(FEATURES, config.model).read_dense()
    return LocalClient.fresh(spec, dense, None if published is None else published.append)


def worker(log: Log, client: LocalClient, config: Config) -> Worker:
    return Worker(0, 1, log, client, Learner(build_model(FEATURES, config.model)), config)


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
    assert sorted(mixed.where()) == [3, 4]
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
        example(17, kept=0.0),
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


# --- step records that can't be read ---

RUBBISH = [
    b"\xc1rubbish",
    b"\x81\xa4line\xa1\xff",
    b"\x91" * 3000,
    pack(Live(line="main", epoch=0)),
]


def copied(log: Log, steps: Sequence[bytes]) -> MemoryLog:
    """The examples of a log, with other records of steps."""
    copy = toy_log()
    for partition in range(PARTITIONS):
        records = log.read(EXAMPLES, partition, 0, 10_000)
        copy.append(EXAMPLES, [Append(partition, r.key, r.value) for r in records])
    copy.append(STEPS, [Append(0, b"main", value) for value in steps])
    return copy


def raw_steps(log: Log) -> list[bytes]:
    return [record.value for record in log.read(STEPS, 0, 0)]


@pytest.mark.parametrize("rubbish", RUBBISH)
def test_records_between_steps_that_are_none_change_no_bit(rubbish: bytes) -> None:
    log, config = trained_log(), toy_config()
    steps = raw_steps(log)
    noisy = copied(log, [rubbish, *(value for step in steps for value in (step, rubbish))])
    clients = [fresh_client(config), fresh_client(config)]
    for which, client in zip((log, noisy), clients, strict=True):
        drain(its := worker(which, client, config))
        assert its.step == 13 and its.counts["empty_steps"] == 0
    assert digest_of_shards(clients[0].shards) == digest_of_shards(clients[1].shards)
    cutter = sequence(noisy, Clock())
    assert (cutter.step, cutter.offsets) == (13, sequence(log, Clock()).offsets)


@pytest.mark.parametrize("lost", [[0], [5], [3, 4, 7]])
def test_a_step_whose_record_cant_be_read_is_empty_wherever_one_begins(lost: list[int]) -> None:
    log, config = trained_log(), toy_config()
    steps = raw_steps(log)
    for place in lost:
        steps[place] = RUBBISH[place % 3]
    broken = copied(log, steps)
    whole = fresh_client(config, deltas := list[Delta]())
    its = worker(broken, whole, config)
    for _ in range(13):
        its.turn()
    assert (its.step, its.counts["empty_steps"]) == (13, len(lost))
    assert its.counts["examples"] == 102 - 8 * len(lost)
    assert [d.step for d in deltas] == list(range(1, 14))
    client = fresh_client(config)
    for _ in range(13):  # a new worker for each step, which begins to read there
        worker(broken, client, config).turn()
    assert digest_of_shards(client.shards) == digest_of_shards(whole.shards)
    reader = StepReader(broken, "main", 0)
    assert [reader.place(n) for n in range(1, 14)] == list(range(13))
    assert reader.unreadable == len(lost) and reader.record(14) is None


def test_a_newest_step_that_cant_be_read_is_cut_again() -> None:
    log, clock = trained_log(), Clock()
    steps = raw_steps(log)
    broken = copied(log, [*steps[:-1], b"\xc1rubbish"])
    loop = sequence(broken, clock)
    assert loop.turn() > 0 and loop.step == 12  # its examples wait
    clock.now_ms = 500
    loop.turn()
    assert unpack(raw_steps(broken)[-1], Step) == unpack(steps[-1], Step)
    its = worker(broken, fresh_client(toy_config()), toy_config())
    drain(its)
    assert its.step == 13 and its.counts["empty_steps"] == 0


def test_steps_that_nobody_can_tell_apart_say_what_to_do() -> None:
    log, config = trained_log(), toy_config()
    steps = raw_steps(log)
    broken = copied(log, [*steps[:5], b"\xc1rubbish", *steps[7:]])  # one record in the place of two
    client = fresh_client(config)
    with pytest.raises(LogLost, match=r"steps/0 has no step 6 .*offsets \[5\].*of step 7"):
        drain(worker(broken, client, config))
    assert client.where() == [4]  # it looks one step ahead
    only_missing = worker(copied(log, steps[:5] + steps[6:]), fresh_client(config), config)
    drain(only_missing)  # waits: where no record is broken, one may be on its way
    assert only_missing.step == 5


# --- ticks ---


def test_a_partition_that_never_had_an_event_is_not_ticked() -> None:
    log, clock = toy_log(), Clock()
    ticker = Ticker(log, clock)
    log.append(EVENTS, [Append(1, b"", encode(Tick(time_ms=0)))])
    for now_ms in range(0, 5_001, 50):
        clock.now_ms = now_ms
        ticker.turn()
    assert [log.end(EVENTS, p) > 0 for p in range(PARTITIONS)] == [
        p == 1 for p in range(PARTITIONS)
    ]


def test_idle_partitions_are_ticked_once_a_second() -> None:
    log, clock = toy_log(), Clock()
    log.append(EVENTS, [Append(p, b"", encode(Tick(time_ms=0))) for p in range(PARTITIONS)])
    ticker = Ticker(log, clock)
    ticks = 0
    for now_ms in range(0, 10_001, 50):
        clock.now_ms = now_ms
        ticks += ticker.turn()
    assert 9 * PARTITIONS <= ticks <= 10 * PARTITIONS
    times = [decode(r.value).time_ms for r in log.read(EVENTS, 0, 0)]
    assert times == sorted(times) and isinstance(decode(log.read(EVENTS, 0, 0)[0].value), Tick)


def test_a_tick_goes_on_from_the_newest_event_and_is_never_later_than_now() -> None:
    log, clock = toy_log(), Clock()
    ticker = Ticker(log, clock)
    starts_ms = [1_000, 500_000, 5_000_000]  # the past; now; a client whose clock is fast
    records = [
        Append(p, b"", encode(Tick(time_ms=t))) for p, t in enumerate(starts_ms[:PARTITIONS])
    ]
    log.append(EVENTS, records)
    for now_ms in range(500_000, 510_001, 50):
        clock.now_ms = now_ms
        ticker.turn()
    newest = [decode(log.read(EVENTS, p, 0)[-1].value).time_ms for p in range(len(records))]
    assert 10_000 <= newest[0] <= 11_000  # ten seconds on, and not half a million
    assert 509_000 <= newest[1] <= 510_000
    assert all(time_ms <= 510_000 for time_ms in newest)


def test_busy_partitions_are_not_ticked() -> None:
    idle = Idle(1000)
    found = [idle.due([now_ms // 300, 5], now_ms) for now_ms in range(0, 5000, 100)]
    assert all(0 not in due for due in found) and found[10] == [1] and found[9] == []


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
    assert client.where() == [cutter.step]


# --- the director ---


def direct(log: Log, folder: Path, clock: Clock) -> Director:
    return Director(log, toy_config(str(folder)), clock)


def test_the_first_live_record_is_written_once(tmp_path: Path) -> None:
    log, clock = toy_log(), Clock()
    for _ in range(3):
        its = direct(log, tmp_path, clock)
        its.turn()
        its.turn()
    live = everything(log, CONTROL, Live)[0]
    assert [(x.line, x.epoch) for x in live] == [("main", 0)] and its.live == live[0]


def test_an_existing_live_pointer_is_followed_not_moved(tmp_path: Path) -> None:
    log = toy_log()
    log.append(CONTROL, [Append(0, b"", pack(Live(line="cand-1", epoch=3)))])
    log.append(CONTROL, [Append(0, b"", b"\xc1rubbish")])
    its = direct(log, tmp_path, Clock())
    its.turn()
    assert its.live is not None and its.live.line == "cand-1" and log.end(CONTROL, 0) == 2


def test_old_snapshots_go_and_the_log_keeps_what_follows_the_oldest_left(tmp_path: Path) -> None:
    log, clock = trained_log(200), Clock()
    its = direct(log, tmp_path, clock)
    its.turn()
    assert not log.holds(EXAMPLES, 0)
    for step in (0, 5, 10, 15, 20):
        write_part(tmp_path / "snapshots", "main", 0, step, 0, 1, {"a": np.zeros(1)}, {})
    clock.now_ms = 5_000
    its.turn()
    assert (its.oldest, its.removed) == (10, 2)
    after: list[Step] = everything(log, STEPS, Step)[0][10:]
    for partition in range(PARTITIONS):
        first = min(r.start for step in after for r in step.ranges if r.partition == partition)
        assert log.holds(EXAMPLES, partition) == {"snapshots/main": first}
        log.trim(EXAMPLES, partition, 10_000)
    assert all(len(records_of(log, step)) == step.examples for step in after)
    with pytest.raises(LogLost):
        records_of(log, everything(log, STEPS, Step)[0][9])


def test_a_quiet_partition_is_held_where_it_ended_before_the_oldest_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(director, "_AHEAD", 3)
    log, clock = toy_log(), Clock()
    append_examples(log, [example(3 * n + p, sequence=n + 1) for n in range(20) for p in (0, 1)])
    touched, ends = {1: (0, 1), 2: (0,), 3: (0, 1), 12: (0,), 14: (0, 1), 20: (0, 1)}, [0, 0]
    for number in range(1, 30):
        ranges = [Range(p, ends[p], ends[p] + 1) for p in touched.get(number, ())]
        for part in ranges:
            ends[part.partition] = part.stop
        step = replace_struct(step_of("main", number), ranges=ranges)
        log.append(STEPS, [Append(0, b"", pack(step)), Append(0, b"", b"\xc1no step")])
    its = direct(log, tmp_path, clock)
    held = []
    for oldest in (5, 9, 15, 25):
        monkeypatch.setattr(director.snapshots, "complete_steps", lambda *_, step=oldest: [step])
        clock.now_ms += 5_000
        its.turn()
        held.append([log.holds(EXAMPLES, p)["snapshots/main"] for p in range(PARTITIONS)])
    assert held == [[3, 2, 0], [3, 2, 0], [5, 3, 0], [6, 4, 0]]


def test_an_epoch_that_never_was_live_says_nothing_of_where_partitions_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, clock = toy_log(), Clock()
    append_examples(log, [example(3 * n, sequence=n + 1) for n in range(20)])
    for epoch, number, ranges in (
        (0, 1, [Range(0, 0, 3)]),
        (1, 1, [Range(0, 0, 9)]),  # its making ended in the middle
        (2, 2, []),
        (2, 3, []),
    ):
        step = replace_struct(step_of("main", number), epoch=epoch, ranges=ranges)
        log.append(STEPS, [Append(0, b"", pack(step))])
    log.append(CONTROL, [Append(0, b"", pack(Live(line="main", epoch=2)))])
    monkeypatch.setattr(director.snapshots, "complete_steps", lambda *_: [2])
    its = direct(log, tmp_path, clock)
    its.turn()
    assert its.oldest == 2 and log.holds(EXAMPLES, 0) == {"snapshots/main": 3}


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
            counts = examples_behind(lane.lookup)
            tables = {t: RowGradients(k, g, counts[t]) for t, (k, g) in out.gradients.items()}
            sent.append(LaneGradients(number, tables, out.dense, out.metrics))
        client.exchange(step.step, step.time_ms, sent, None)
    return digest_of_shards(client.shards)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_over_sockets_learn_what_is_computed_by_hand(tmp_path: Path, workers: int) -> None:
    config = toy_config(shards=2)
    log, model = trained_log(), build_model(FEATURES, config.model)
    spec = spec_of(config)
    shards, servers = [], []
    for part in range(2):
        home = Home(tmp_path / "snapshots", tmp_path / f"{part}.wal", 5, 2)
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
    assert digest_of_shards([shard.shard for shard in shards]) == by_hand(log, config)


# --- the parts ---


def test_the_parts_run_over_one_log_and_stop_when_asked(tmp_path: Path) -> None:
    config = toy_config(str(tmp_path))
    config = replace(config, log=replace(config.log, partitions=PARTITIONS))
    blueprint.decide(config, FEATURES)
    log = open_log(config)
    create_topics(log, config)
    for topic in (EVENTS, ITEMS, STEPS):
        log.append(topic, [Append(0, b"", b"\xc1rubbish")])
    bodies = {
        "joiner": joiner_loop.run,
        "sequencer": sequencer_loop.run,
        "archive": archive.run,
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
    archived = archive.read_archive(tmp_path / "archive", EXAMPLES).collect()
    assert 60 < len(archived) <= made
    controls = [msgspec.msgpack.decode(r.value)["type"] for r in log.read(CONTROL, 0, 0)]
    assert controls.count("live") == 1
    letters = everything(log, DEAD_LETTERS, DeadLetter)[0]
    assert sorted(letter.topic for letter in letters) == [EVENTS, ITEMS, STEPS]
    assert PartState(tmp_path, "joiner").load(log.id) is not None
    log.close()
