"""When counters that were read from the middle of ``item_state`` on are those of who has read all of it."""

from pathlib import Path

import numpy as np
import pytest

from plugins.answer_explanation.reconstructed_replica import (
    CounterCoverage,
    NotReconstructible,
    ReconstructedReplica,
    records,
)
from recsys.events.event_types import Item, RequestInputs, Stamp, encode
from recsys.events.hashing import key_of
from recsys.events.records import ITEM_STATE, ITEMS, ItemState, pack, topics
from recsys.log.protocol import Append, MemoryLog
from tests.support.training.small_feed import FEATURES, toy_config, toy_log


def told(last_ms: int, part: int = 0, parts: int = 0) -> ItemState:
    times = np.array([last_ms], np.int64).tobytes()
    return ItemState(offsets=[0], keys=b"", values=b"", last_ms=times, part=part, parts=parts)


WHOLE = [told(900, 0, 3), told(500, 1, 3), told(1_400, 2, 3)]


@pytest.mark.parametrize(("read", "settled"), [
    ([*WHOLE, told(2_000)], True),
    ([told(100), *WHOLE, told(1_900), told(2_100)], True),
    (WHOLE, False),  # the popular may still be those of before
    ([*WHOLE, told(1_999)], False),
    ([*WHOLE[1:], told(2_000)], False),  # retention cut it
    ([*WHOLE[:2], told(1_000), told(2_000)], False),  # whoever told was killed
    ([*WHOLE[:2], *WHOLE, told(2_000)], True),
    ([told(1_000), told(2_000), told(3_000)], False),
])  # fmt: skip
def test_all_must_be_told_and_a_second_begin(read: list[ItemState], settled: bool) -> None:
    telling = CounterCoverage()
    for state in read:
        telling.read(state)
    assert telling.settled == settled


def test_records_that_are_gone_or_were_never_there_are_told() -> None:
    log = MemoryLog()
    for topic in topics(1):
        log.create(topic)
    log.append(ITEM_STATE, [Append(0, b"", b"x")] * 9)
    log.trim(ITEM_STATE, 0, 4)
    assert [r.offset for r in records(log, ITEM_STATE, 0, 4, 7)] == [4, 5, 6]
    assert list(records(log, ITEM_STATE, 0, 7, 7)) == []
    with pytest.raises(NotReconstructible, match="offset 2 is gone, the log begins at 4"):
        list(records(log, ITEM_STATE, 0, 2, 7))
    with pytest.raises(NotReconstructible, match="ends at offset 9, but was read up to 12"):
        list(records(log, ITEM_STATE, 0, 5, 12))


def test_it_goes_to_any_version_of_the_catalogue_and_of_counters(tmp_path: Path) -> None:
    log = toy_log()
    for n in range(6):
        log.append(ITEMS, [Append(0, b"", encode(Item(time_ms=n, item_id=f"v{n}")))])
        keys = np.array([key_of("item", "v0")])
        values = np.full((1, FEATURES.counter_table().columns), float(n), np.float32)
        state = ItemState(offsets=[n], keys=keys.tobytes(), values=values.tobytes(), last_ms=told(n).last_ms)
        log.append(ITEM_STATE, [Append(0, b"", pack(state))])
    replica = ReconstructedReplica(log, toy_config(str(tmp_path)), FEATURES)
    inputs, made = RequestInputs(candidates=77), []
    for items, states in ((2, 2), (5, 2), (5, 5), (3, 5), (3, 4), (6, 6)):
        stamp = Stamp(catalogue_offset=items, item_state_offset=states)
        pipeline = replica.at(stamp, inputs)
        current = replica.replica
        assert current.config.serve.candidates == 77 and current is pipeline.replica
        assert len(current.catalogue) == items
        assert current.counters.read(keys, states - 1)[0, 0] == pytest.approx(states - 1)
        made.append(current)
    # Forward in place; back by a new one.
    assert made[0] is made[1] is made[2] and made[3] is not made[2]
    assert made[4] is not made[3] and made[5] is made[4]
