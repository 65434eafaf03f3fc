"""A replica follows `item_state`: after its items, and also where some of it was trimmed."""

from pathlib import Path

import numpy as np
import pytest

from recsys.events.hashing import key_of
from recsys.events.records import ITEM_STATE, ItemState
from tests.support.serving.followed_log import FEATURES, NOW_MS, FollowedLog


@pytest.fixture
def fixture(tmp_path: Path) -> FollowedLog:
    return FollowedLog(tmp_path)


def test_item_state_that_was_trimmed_is_begun_again(fixture: FollowedLog) -> None:
    fixture.turn()
    for _ in range(5):
        fixture.put(ITEM_STATE, b"\xc1")
    fixture.log.trim(ITEM_STATE, 0, 4)
    fixture.turn()
    fixture.turn()
    assert fixture.live.followers.unreadable == 1 and fixture.live.followers.lag[ITEM_STATE] == 0


def test_a_replica_that_starts_reads_items_before_their_counters(fixture: FollowedLog) -> None:
    """Else the popular would be looked for among the first few items alone."""
    last, columns = 2_499, 2 * len(FEATURES.kinds)
    for i in range(last + 1):
        fixture.item(i)
    keys = np.array([key_of("item", f"v{last}")], np.int64)
    state = ItemState(
        offsets=[0] * 4,
        keys=keys.tobytes(),
        values=np.full(columns, 2.0, np.float32).tobytes(),
        last_ms=np.array([NOW_MS], np.int64).tobytes(),
    )
    fixture.put(ITEM_STATE, b"\xc1")
    fixture.log.trim(ITEM_STATE, 0, 1)
    fixture.put(ITEM_STATE, state)
    variant = fixture.another()
    variant.followers.catch_up(lambda: False)
    assert variant.replica.popularity.top.tolist() == [last]
    assert (variant.replica.item_state_from, variant.replica.item_state_offset) == (1, 2)


def test_that_counters_were_passed_over_is_said(fixture: FollowedLog) -> None:
    fixture.turn()
    for _ in range(3):
        fixture.put(ITEM_STATE, b"\xc1")
    fixture.log.trim(ITEM_STATE, 0, 2)
    fixture.turn()
    assert fixture.live.replica.item_state_from == -1
