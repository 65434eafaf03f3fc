"""A log with users to unlearn or to rewind, and a line that learns it with shards in the test."""

from collections.abc import Callable
from pathlib import Path

import msgspec

from parameter_server.rpc.parameter_client import part_of
from parameter_server.shard.shard import digest_of_shards
from parameter_server.storage.durable_shard import DurableShard, ShardStorage
from recsys.config.system_config import Config
from recsys.events.event_types import Engagement, Event, Impression, Stamp
from recsys.events.records import DELTAS, EVENTS, EXAMPLES, STEPS, Example, unpack
from recsys.log.protocol import Append, Log, MemoryLog
from recsys.model.model import build_model
from recsys.process.log_consumer import UNREADABLE
from tests.support.parameter_server.durable_client import DurableClient
from tests.support.training.small_feed import FEATURES, PARTITIONS, append_events, feed, toy_log
from training.continual.learner import Learner
from training.continual.worker import Worker
from training.deletion.erasure import erased_record, tombstone_of
from training.lines.control import live_epoch
from training.lines.line import spec_of
from training.steps.drain import drain
from training.steps.sequencer_loop import last_position

BATCH = 8  # requests joined and cut together
BATCH_MS = 200_000  # between batches, so that the windows of one are over before the next


class Shards(DurableClient):
    """The shards of a line with their files, in this process."""

    def __init__(self, config: Config, log: Log, epoch: int = 0) -> None:
        folder, spec = Path(config.state), spec_of(config, epoch=epoch)
        dense = build_model(FEATURES, config.model).read_dense()
        durable = []
        for part in range(spec.parts):
            wal = folder / "parts" / "shards" / f"main-{epoch}-{part}-of-{spec.parts}.wal"
            home = ShardStorage(folder / "snapshots", wal, config.step.snapshot_every, snapshots_kept=4)

            def publish(values: object) -> None:
                log.append(DELTAS, [Append(0, b"main", value) for value in values])  # type: ignore[attr-defined]

            first = dense if part == 0 else None
            durable.append(DurableShard(part_of(spec, part), home, publish, first))
        super().__init__(durable)


def learn(config: Config, log: Log, until: int | None = None) -> str:
    """The line as it learns when it runs: to the end of what is cut."""
    epoch = live_epoch(log)
    shards = Shards(config, log, epoch)
    learner = Learner(build_model(FEATURES, config.model))
    worker = Worker(0, 1, log, shards, learner, config, epoch=epoch)
    last = until or last_position(log, "main", epoch, PARTITIONS).step
    while min(shards.applied_steps()) < last:
        worker.turn()
    shards.close()
    return digest_of_shards(shards.shards)


def history_with_late_users(config: Config, rename: Callable[[Event], Event]) -> MemoryLog:
    """A log on which everything is joined and cut, a few requests at a time; nothing is learned yet.
    ``rename`` gives the events of the last requests other users."""
    log = toy_log()
    for first in range(0, 40, 8):
        events = feed(8, first)
        append_events(log, [rename(event) for event in events] if first >= 24 else events)
        drain(log, config, FEATURES)
    return log


def never_seen(log: Log, *users: str) -> MemoryLog:
    """The same log, on which the users' examples have been empty places from the beginning."""
    other, befores = toy_log(), {user.encode(): 1 << 60 for user in users}
    for topic in (EVENTS, EXAMPLES, STEPS):
        for partition in range(log.partitions(topic)):
            records = log.read(topic, partition, 0, 100_000)
            if topic == EXAMPLES:
                records = [erased_record(topic, befores, record) or record for record in records]
            other.append(topic, [Append(partition, key, value) for _, key, value in records])
    return other


def stamped(event: Event, number: int, source_of: Callable[[Event], int | None]) -> Event:
    """An event of a batch as the server logs it: lists with a stamp, engagements with a source."""
    event = msgspec.structs.replace(event, time_ms=event.time_ms + number * BATCH_MS)
    if isinstance(event, Impression):
        return msgspec.structs.replace(event, stamp=Stamp(line="main", epoch=0, step=1))
    if isinstance(event, Engagement) and (source := source_of(event)) is not None:
        return msgspec.structs.replace(event, source=source)
    return event


def fill(log: Log, config: Config, source_of: Callable[[Event], int | None], requests: int = 40) -> None:
    """Appends requests in batches; each is joined and cut before the next."""
    for first in range(0, requests, BATCH):
        events = feed(BATCH, first)
        append_events(log, [stamped(event, first // BATCH, source_of) for event in events])
        drain(log, config, FEATURES)


def examples_of(log: Log) -> list[Example]:
    """All examples that the log has."""
    examples = []
    for partition in range(log.partitions(EXAMPLES)):
        for record in log.read(EXAMPLES, partition, 0, 100_000):
            try:
                examples.append(unpack(record.value, Example))
            except UNREADABLE:
                continue
    return examples


def without_examples(log: Log, is_left_out: Callable[[Example], bool]) -> MemoryLog:
    """The same log, on which some examples have been empty places from the beginning."""
    other = toy_log()
    for topic in (EVENTS, EXAMPLES, STEPS):
        for partition in range(log.partitions(topic)):
            for record in log.read(topic, partition, 0, 100_000):
                if topic == EXAMPLES:
                    try:
                        example = unpack(record.value, Example)
                    except UNREADABLE:
                        pass
                    else:
                        record = tombstone_of(record, example) if is_left_out(example) else record
                other.append(topic, [Append(partition, record.key, record.value)])
    return other


def follow(copy: Log, log: Log) -> Log:
    """Appends to a copy what the log has got since."""
    for topic in (EVENTS, EXAMPLES, STEPS):
        for partition in range(log.partitions(topic)):
            for record in log.read(topic, partition, copy.end(topic, partition), 100_000):
                copy.append(topic, [Append(partition, record.key, record.value)])
    return copy
