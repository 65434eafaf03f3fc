"""A log with sources and stamps for tests of rewinds, and the log on which some examples never were."""

from collections.abc import Callable

import msgspec

from recsys.config.system_config import Config
from recsys.events.event_types import Engagement, Event, Impression, Stamp
from recsys.events.records import EVENTS, EXAMPLES, STEPS, Example, unpack
from recsys.log.protocol import Append, Log, MemoryLog
from recsys.process.log_consumer import UNREADABLE
from tests.support.training.small_feed import FEATURES, append_events, feed, toy_log
from training.deletion.erasure import tombstone_of
from training.steps.drain import drain

BATCH = 8  # requests joined and cut together
BATCH_MS = 200_000  # between batches, so that the windows of one are over before the next


def stamped(event: Event, number: int, source_of: Callable[[Event], int | None]) -> Event:
    """An event of a batch as the server logs it: lists with a stamp, engagements with a source."""
    event = msgspec.structs.replace(event, time_ms=event.time_ms + number * BATCH_MS)
    if isinstance(event, Impression):
        return msgspec.structs.replace(event, stamp=Stamp(line="main", epoch=0, step=1))
    if isinstance(event, Engagement) and (source := source_of(event)) is not None:
        return msgspec.structs.replace(event, source=source)
    return event


def fill(
    log: Log, config: Config, source_of: Callable[[Event], int | None], requests: int = 40
) -> None:
    """Appends requests in batches; each is joined and cut before the next."""
    for first in range(0, requests, BATCH):
        events = feed(BATCH, first)
        append_events(log, [stamped(event, first // BATCH, source_of) for event in events])
        drain(log, config, FEATURES)


def examples_of(log: Log) -> list[Example]:
    """All examples that the log has."""
    found = []
    for partition in range(log.partitions(EXAMPLES)):
        for record in log.read(EXAMPLES, partition, 0, 100_000):
            try:
                found.append(unpack(record.value, Example))
            except UNREADABLE:
                continue
    return found


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
