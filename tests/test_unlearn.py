"""Unlearning a user: the state of a line that never saw them, bit for bit, as the line's next epoch."""

from pathlib import Path

import msgspec
import pytest

from parameter_server import snapshots
from parameter_server.durable import DurableShard, Home
from parameter_server.parameter_client import LocalClient, part_of
from parameter_server.shard import digest_of_shards
from recsys.blueprint import build_model
from recsys.config import Config
from recsys.events import Event, User, encode
from recsys.hashing import partition_of
from recsys.log import Append, Log, MemoryLog
from recsys.records import (
    CONTROL,
    DELTAS,
    EVENTS,
    EXAMPLES,
    STEPS,
    Live,
    Step,
    unpack,
)
from tests.toy_feed import FEATURES, PARTITIONS, START_MS, append_events, feed, toy_config, toy_log
from training.erasure import left_of
from training.learner import Learner
from training.line import spec_of
from training.live import live_epoch
from training.sequencer_loop import last_place
from training.standstill import finish
from training.unlearn import CantUnlearn, unlearn
from training.worker import Worker

LATE = "u91"  # only in the newer part of the log
EARLY = "u3"


def config_of(folder: Path, shards: int = 2) -> Config:
    return toy_config(str(folder), shards=shards)


class Shards(LocalClient):
    """The shards of a line with their files, in this process."""

    def __init__(self, config: Config, log: Log, epoch: int = 0) -> None:
        folder, spec = Path(config.state), spec_of(config, epoch=epoch)
        dense = build_model(FEATURES, config.model).read_dense()
        self.durable = []
        for part in range(spec.parts):
            wal = folder / "parts" / "shards" / f"main-{epoch}-{part}-of-{spec.parts}.wal"
            home = Home(folder / "snapshots", wal, config.step.snapshot_every, snapshots_kept=4)

            def publish(values: object) -> None:
                log.append(DELTAS, [Append(0, b"main", value) for value in values])  # type: ignore[attr-defined]

            first = dense if part == 0 else None
            self.durable.append(DurableShard(part_of(spec, part), home, publish, first))
        super().__init__([its.shard for its in self.durable])

    def exchange(self, step, time_ms, lanes, next_keys, meanwhile=None):  # type: ignore[no-untyped-def]
        from parameter_server.parameter_client import route_lanes

        for its, own in zip(self.durable, route_lanes(lanes, len(self.durable)), strict=True):
            its.learn(step, time_ms, own)
        return None if next_keys is None else self.lookup(step, next_keys), self.dense(step)

    def close(self) -> None:
        for its in self.durable:
            its.close()


def learn(config: Config, log: Log, until: int | None = None) -> str:
    """The line as it learns when it runs: to the end of what is cut."""
    epoch = live_epoch(log)
    shards = Shards(config, log, epoch)
    learner = Learner(build_model(FEATURES, config.model))
    worker = Worker(0, 1, log, shards, learner, config, epoch=epoch)
    last = until or last_place(log, "main", epoch, PARTITIONS).step
    while min(shards.where()) < last:
        worker.turn()
    shards.close()
    return digest_of_shards(shards.shards)


def history(config: Config) -> MemoryLog:
    """A log on which everything is joined and cut, a few requests at a time; nothing is learned yet."""
    log = toy_log()
    for first in range(0, 40, 8):
        events = feed(8, first)
        if first >= 24:
            events = [named(event) for event in events]
        append_events(log, events)
        finish(log, config, FEATURES)
    return log


def named(event: Event) -> Event:
    """Every user of the last requests but one is the late one."""
    if getattr(event, "user_id", EARLY) == EARLY:
        return event
    return msgspec.structs.replace(event, user_id=LATE)


def never_seen(log: Log, user: str) -> MemoryLog:
    """The same log, on which the user's examples have been empty places from the beginning."""
    other = toy_log()
    for topic in (EVENTS, EXAMPLES, STEPS):
        for partition in range(log.partitions(topic)):
            records = log.read(topic, partition, 0, 100_000)
            if topic == EXAMPLES:
                records = [
                    (r.key == user.encode() and left_of(topic, r, 1 << 60)) or r for r in records
                ]
            other.append(topic, [Append(partition, key, value) for _, key, value in records])
    return other


def request(log: Log, user: str) -> int:
    tombstone = User(time_ms=START_MS + 20_000_000, user_id=user, removed=True)
    where = partition_of(user, PARTITIONS)
    (offset,) = log.append(EVENTS, [Append(where, user.encode(), encode(tombstone))])
    return offset


def test_the_digest_is_that_of_a_line_that_never_saw_the_user(tmp_path: Path) -> None:
    config = config_of(tmp_path / "a")
    log = history(config)
    before = request(log, LATE)
    finish(log, config, FEATURES)
    seen = learn(config, log)
    expected = learn(config_of(tmp_path / "b", shards=3), never_seen(log, LATE))
    done = unlearn(log, config, FEATURES, LATE, before, 5)
    assert done is not None and (done.epoch, done.digest) == (1, expected) and seen != expected
    assert 0 < done.since < done.step and done.examples > 10 and done.other_config == 0

    assert live_epoch(log) == 1
    [live] = [unpack(r.value, Live) for r in log.read(CONTROL, 0, 0)]
    assert (live.epoch, live.reason) == (1, "a user was unlearned")
    assert learn(config, log) == done.digest  # the epoch's shards begin from its snapshot
    partition = partition_of(LATE, PARTITIONS)
    assert log.keyed(EXAMPLES, partition, [LATE.encode()], 1 << 60) == []
    kept = snapshots.complete_steps(tmp_path / "a" / "snapshots", "main", 0)
    assert kept == [] or kept[-1] <= done.since
    assert log.begin(DELTAS, 0) == log.end(DELTAS, 0)
    assert not list((tmp_path / "a" / "parts" / "shards").glob("main-0-*"))


@pytest.mark.slow
def test_the_epoch_goes_on_with_the_steps_where_the_one_before_it_ended(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    log = history(config)
    before = request(log, LATE)
    finish(log, config, FEATURES)
    learn(config, log)
    done = unlearn(log, config, FEATURES, LATE, before, 5)
    assert done is not None
    copied = [unpack(r.value, Step) for r in log.read(STEPS, 0, 0, 10_000)]
    by_version = {(s.epoch, s.step): s for s in copied}
    for number in range(done.since + 1, done.step + 1):
        was, now = by_version[0, number], by_version[1, number]
        assert (was.ranges, was.examples, was.time_ms) == (now.ranges, now.examples, now.time_ms)
    place = last_place(log, "main", 1, PARTITIONS)
    assert place.step == done.step
    assert place.offsets == last_place(log, "main", 0, PARTITIONS).offsets
    append_events(log, feed(8, first=100_000))
    assert finish(log, config, FEATURES) > done.step
    learn(config, log)


@pytest.mark.slow
def test_without_a_snapshot_from_before_it_goes_back_to_the_beginning(tmp_path: Path) -> None:
    config = config_of(tmp_path / "a")
    log = history(config)
    before = request(log, EARLY)
    finish(log, config, FEATURES)
    learn(config, log)
    expected = learn(config_of(tmp_path / "b"), never_seen(log, EARLY))
    snapshots.prune(tmp_path / "a" / "snapshots", "main", keep=1)
    done = unlearn(log, config, FEATURES, EARLY, before, 5)
    assert done is not None and (done.since, done.digest) == (0, expected)


@pytest.mark.slow
def test_a_second_user_is_unlearned_from_a_history_that_was_replaced(tmp_path: Path) -> None:
    config = config_of(tmp_path / "a")
    log = history(config)
    places = [request(log, LATE), request(log, EARLY)]
    finish(log, config, FEATURES)
    learn(config, log)
    unlearn(log, config, FEATURES, LATE, places[0], 5)
    expected = learn(config_of(tmp_path / "b"), never_seen(never_seen(log, LATE), EARLY))
    done = unlearn(log, config, FEATURES, EARLY, places[1], 6)
    assert done is not None and (done.epoch, done.digest) == (2, expected)
    assert learn(config, log) == expected


@pytest.mark.slow
@pytest.mark.parametrize("dies_at", ["steps", "snapshot", "pointer", "examples"])
def test_killed_anywhere_it_is_done_again(
    tmp_path: Path, dies_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path / "a")
    log = history(config)
    before = request(log, LATE)
    finish(log, config, FEATURES)
    learn(config, log)
    expected = learn(config_of(tmp_path / "b"), never_seen(log, LATE))
    where = {
        "steps": "training.unlearn._replay",
        "snapshot": "training.unlearn.snapshots.write_part",
        "pointer": "training.unlearn.point",
        "examples": "training.unlearn.erase_records",
    }

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(where[dies_at], dies)
        unlearn(log, config, FEATURES, LATE, before, 5)
    assert live_epoch(log) == (1 if dies_at == "examples" else 0)
    done = unlearn(log, config, FEATURES, LATE, before, 6)
    assert done is not None and done.digest == expected
    assert done.epoch == live_epoch(log)
    assert learn(config, log) == expected


@pytest.mark.slow
def test_a_user_of_whom_nothing_was_learned_costs_nothing(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    log = history(config)
    learn(config, log)
    steps = log.end(STEPS, 0)
    assert unlearn(log, config, FEATURES, "nobody", 1 << 60, 5) is None
    assert (log.end(STEPS, 0), live_epoch(log)) == (steps, 0)


@pytest.mark.slow
def test_what_is_gone_from_the_log_is_said_and_nothing_is_changed(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    log = history(config)
    before = request(log, EARLY)
    finish(log, config, FEATURES)
    learn(config, log)
    snapshots.prune(tmp_path / "snapshots", "main", keep=1)
    for partition in range(PARTITIONS):
        log.trim(EXAMPLES, partition, 2)
    steps = log.end(STEPS, 0)
    with pytest.raises(CantUnlearn, match="is of step 0, and the log no longer has .* --unlearn"):
        unlearn(log, config, FEATURES, EARLY, before, 5)
    assert (log.end(STEPS, 0), live_epoch(log)) == (steps, 0)
