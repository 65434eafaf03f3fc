"""Counters recounted from archived events: bounds and quarantines as the counters' part applied them."""

import msgspec
import numpy as np

from plugins.feature_audit.audit_source import PlacedImpression
from plugins.feature_audit.recompute import CountersAsOf
from recsys.config.safety_config import BoundsConfig
from recsys.events.event_types import Engagement, Event, Verdict, encode
from recsys.events.hashing import partition_of
from recsys.events.records import EVENTS, topics
from recsys.log.protocol import Append, MemoryLog
from serving.sessions.counter_loop import CounterLoop
from tests.support.past_events import ToyPast
from tests.support.training.small_feed import FEATURES, PARTITIONS, START_MS, engagement, impression


def past_events() -> list[Event]:
    events: list[Event] = []
    for n in range(40):
        shown = impression(n, n % 8, START_MS + n * 1_000)
        events.append(shown)
        for index, kind in enumerate(("like", "like", "view")):
            done = engagement(shown, index // 2, kind, 100 + index)
            event_id = f"e{n}-{index}"
            events.append(msgspec.structs.replace(done, event_id=event_id, source=n % 3))
        if n in (20, 30):
            held = n == 20
            at_ms = START_MS + n * 1_000 + 500
            events.append(Verdict(time_ms=at_ms, user_id="u4", quarantined=held))
    return [*events, impression(99, 1, START_MS + 60_000)]


def test_recounted_counters_equal_the_parts() -> None:
    bounds, past, log = BoundsConfig(burst=4, daily=1, floor=2), ToyPast(), MemoryLog()
    for topic in topics(PARTITIONS):
        log.create(topic)
    for event in past_events():
        past.add(event)
        user = str(event.user_id)  # type: ignore[union-attr]
        log.append(EVENTS, [Append(partition_of(user, PARTITIONS), user.encode(), encode(event))])
    loop = CounterLoop(log, FEATURES, bounds=bounds)
    while loop.turn():
        pass
    last = past.shown()[-1]
    ends = [len(events) for events in past.partitions]
    asked = msgspec.structs.replace(last.impression, stamp=None)
    recount = CountersAsOf(past.history(), past.events, PARTITIONS, bounds)
    counted = recount.of(PlacedImpression(last.partition, ends[last.partition], asked))
    keys, _, last_ms = loop.fold.counters.export()
    now_ms = int(last_ms.max())
    expected = loop.fold.counters.read(keys, now_ms)
    np.testing.assert_allclose(counted.read(keys, now_ms), expected, atol=1e-5)
    assert expected.sum() > 1

    free = CounterLoop(log, FEATURES, bounds=BoundsConfig(enabled=False))
    while free.turn():
        pass
    assert free.fold.counters.read(keys, now_ms).sum() > 1.5 * expected.sum()
    assert sum(isinstance(event, Engagement) for event in past_events()) == 120
