"""How much a fold reads at once."""

import pytest

from recsys.events.event_types import Engagement, encode
from recsys.events.records import EVENTS, topics
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import FEED_SCHEMA
from recsys.log.protocol import Append, MemoryLog
from serving.sessions.event_reader import AT_ONCE, EventReader


def log_of(partitions: int, events: int) -> MemoryLog:
    log = MemoryLog()
    for topic in topics(partitions):
        log.create(topic)
    view = Engagement(time_ms=1, request_id="r", user_id="u", item_id="v", kind="view")
    for p in range(partitions):
        for n in range(events):
            view.event_id = f"{p}-{n}"
            log.append(EVENTS, [Append(p, b"", encode(view))])
    return log


@pytest.mark.parametrize(("partitions", "each"), [(64, AT_ONCE // 64), (8, 1_000), (1, 1_000)])
def test_a_batch_is_bounded_over_all_partitions_and_fair_to_them(partitions: int, each: int) -> None:
    reader = EventReader(log_of(partitions, 1_000), FeatureSet(FEED_SCHEMA))
    reader.seek(None)
    read = 0
    while batch := reader.read():
        assert len(batch) <= AT_ONCE
        read += each
        assert reader.offsets == [min(read, 1_000)] * partitions
    assert reader.offsets == [1_000] * partitions


def test_a_partition_of_very_many_is_read_all_the_same() -> None:
    reader = EventReader(log_of(AT_ONCE + 1, 1), FeatureSet(FEED_SCHEMA))
    reader.seek(None)
    assert len(reader.read()) == AT_ONCE + 1 and not reader.read()
