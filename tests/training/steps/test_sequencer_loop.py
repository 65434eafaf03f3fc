"""The sequencer as a loop over a log, and step records that can't be read."""

from collections.abc import Sequence

import msgspec
import pytest

from experiments.promotion.epoch_model import with_size
from parameter_server.shard.shard import digest_of_shards
from recsys.events.control_records import Live, ModelSize
from recsys.events.records import CONTROL, DELTAS, EXAMPLES, STEPS, Delta, Step, pack, unpack
from recsys.log.protocol import Append, Log, LogLost, LogUnavailable, MemoryLog, Record
from tests.support.training.learning_loops import (
    Clock,
    FlakyLog,
    drain,
    everything,
    fresh_client,
    sequence,
    step_of,
    trained_log,
    worker,
)
from tests.support.training.small_feed import (
    FEATURES,
    PARTITIONS,
    append_examples,
    example,
    toy_config,
    toy_log,
)
from training.lines.line import learning_digest
from training.steps import sequencer_loop
from training.steps.sequencer_loop import SequencerLoop
from training.steps.step_reader import StepReader

# --- the sequencer ---


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
    from recsys.log.protocol import Topic

    log.create(Topic(EXAMPLES, PARTITIONS))
    log.create(Topic(STEPS))
    log.create(Topic(CONTROL))
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


def test_live_it_follows_the_trainer() -> None:
    log, clock, config, deltas = toy_log(), Clock(), toy_config(), list[Delta]()
    loop = SequencerLoop(log, config, FEATURES, clock, live=True)
    trainer = worker(log, fresh_client(config, deltas), config)

    def publish() -> None:
        drain(trainer)
        log.append(DELTAS, [Append(0, b"main", pack(delta)) for delta in deltas])
        deltas.clear()

    def steps_after(ms: int) -> int:
        clock.now_ms += ms
        loop.turn()
        return loop.step

    append_examples(log, [example(0)])
    assert [steps_after(ms) for ms in (0, 59, 1)] == [0, 0, 1]
    append_examples(log, [example(1)])
    assert [steps_after(ms) for ms in (0, 61, 100)] == [1, 1, 1]  # step 1 isn't learned yet
    publish()
    assert steps_after(0) == 2
    append_examples(log, [example(2)])
    assert [steps_after(ms) for ms in (0, 249, 1)] == [2, 2, 3]  # the trainer is away
    append_examples(log, [example(n) for n in range(3, 11)])
    assert steps_after(0) == 4  # enough examples
    steps: list[Step] = everything(log, STEPS, Step)[0]
    assert [step.filled for step in steps] == [1] * 4
    again = SequencerLoop(log, config, FEATURES, clock, live=True)
    append_examples(log, [example(11)])
    assert again.turn() == 1 and again.step == 4


def test_it_waits_for_whatever_makes_a_step_due(monkeypatch: pytest.MonkeyPatch) -> None:
    log, clock, waits = toy_log(), Clock(), list[tuple[str, float]]()
    loop = SequencerLoop(log, toy_config(), FEATURES, clock, live=True)
    monkeypatch.setattr(log, "wait", lambda topic, s: waits.append((topic, s)))
    monkeypatch.setattr(sequencer_loop.time, "sleep", lambda s: waits.append(("time", s)))
    for ms in (0, 10, 50):
        loop.wait()
        append_examples(log, [example(ms)])
        clock.now_ms += ms
        loop.turn()
    loop.wait()
    assert waits == [(EXAMPLES, 0.5), ("time", 0.06), ("time", 0.05), (EXAMPLES, 0.5)]
    append_examples(log, [example(1)])
    loop.turn()
    loop.wait()
    assert waits[4:] == [(DELTAS, 0.25)]


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
    assert [(s.line, s.step) for s in steps] == [("main", 1), ("main", 2), ("cand-1", 1), ("cand-1", 2)]
    reader = StepReader(log, "cand-1", 0)
    assert reader.record(2) == steps[3] and reader.record(1) == steps[2] and reader.record(3) is None


def test_steps_say_by_which_model_their_epoch_learns_them() -> None:
    log, clock, size = toy_log(), Clock(), ModelSize(dim=2, hidden=(4,))
    append_examples(log, [example(n) for n in range(32)])
    loop = sequence(log, clock)
    drain(loop)
    lives = [
        Live(line="main", epoch=0),
        Live(line="main", epoch=1, base_step=1, parent_epoch=0, candidate="small", size=size),
        Live(line="main", epoch=2, base_step=2, parent_epoch=0),
    ]
    for live in lives:
        log.append(CONTROL, [Append(0, b"", pack(live))])
        append_examples(log, [example(n) for n in range(16)])
        drain(loop)
        drain(sequence(log, clock))  # one that begins anew says the same
    said: dict[int, list[tuple[int, str]]] = {}
    for step in everything(log, STEPS, Step)[0]:
        said.setdefault(step.epoch, []).append((step.step, step.config))
    usual, small = (learning_digest(with_size(toy_config(), its), FEATURES) for its in (None, size))
    assert [{config for _, config in said[n]} for n in range(3)] == [{usual}, {small}, {usual}]
    assert [said[n][0][0] for n in range(3)] == [1, 2, 3]


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


def test_while_an_epoch_has_no_step_the_others_are_read_once() -> None:
    log, read = toy_log(), list[int]()
    log.append(STEPS, [Append(0, b"", pack(step_of("main", n))) for n in range(1, 1001)])
    inner = log.read

    def counting(topic: str, partition: int, offset: int, limit: int = 1000) -> list[Record]:
        records = inner(topic, partition, offset, limit)
        read.append(len(records))
        return records

    log.read = counting  # type: ignore[method-assign]
    reader = StepReader(log, "main", 1)
    assert reader.record(7) is None and sum(read) >= 1000
    read.clear()
    assert reader.record(7) is None and reader.place(8) is None and sum(read) == 0
    later = [msgspec.structs.replace(step_of("main", n), epoch=1) for n in (7, 8)]
    log.append(STEPS, [Append(0, b"", pack(step)) for step in later])
    assert reader.record(8) == later[1] and sum(read) <= 2
    assert reader.record(7) == later[0] and reader.record(6) is None


# --- step records that can't be read ---


RUBBISH = [b"\xc1rubbish", b"\x81\xa4line\xa1\xff", b"\x91" * 3000, pack(Live(line="main", epoch=0))]


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
    assert client.applied_steps() == [4]  # it looks one step ahead
    only_missing = worker(copied(log, steps[:5] + steps[6:]), fresh_client(config), config)
    drain(only_missing)  # waits: where no record is broken, one may be on its way
    assert only_missing.step == 5
