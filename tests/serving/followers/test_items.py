"""A replica follows `items`: published, removed, and what was read before the log went away."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys.events.records import ITEM_STATE, STEPS, ItemState
from recsys.log.protocol import LogUnavailable
from tests.support.serving.followed_log import FEATURES, KEY, NOW_MS, FollowedLog


@pytest.fixture
def fixture(tmp_path: Path) -> FollowedLog:
    return FollowedLog(tmp_path)


def test_items_and_item_state_are_applied(fixture: FollowedLog) -> None:
    for i in range(130):
        fixture.item(i)
    fixture.item(3, removed=True)
    columns = 2 * len(FEATURES.kinds)
    state = ItemState(
        offsets=[0] * 4,
        keys=np.array([KEY], np.int64).tobytes(),
        values=np.full(columns, 2.0, np.float32).tobytes(),
        last_ms=np.array([NOW_MS], np.int64).tobytes(),
    )
    fixture.put(ITEM_STATE, state)
    fixture.put(ITEM_STATE, b"\xc1")
    fixture.turn()
    replica = fixture.live.replica
    assert len(replica.catalogue) == 130 and int(replica.catalogue.alive.sum()) == 129
    assert replica.counters.read(np.array([KEY]), NOW_MS)[0, 0] == 2.0
    assert (replica.catalogue_offset, replica.item_state_offset) == (131, 1)
    assert fixture.live.followers.unreadable == 1


def test_what_was_read_before_the_log_went_away_is_applied_after(
    fixture: FollowedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixture.turn()
    fixture.item(0)
    fixture.step(1, 1.0)
    read = fixture.log.read

    def away(topic: str, *rest: Any) -> Any:
        if topic == STEPS:
            raise LogUnavailable("away")
        return read(topic, *rest)

    monkeypatch.setattr(fixture.log, "read", away)
    with pytest.raises(LogUnavailable):
        fixture.live.followers.read()
    monkeypatch.setattr(fixture.log, "read", read)
    fixture.turn()
    assert len(fixture.live.replica.catalogue) == 1 and fixture.live.replica.step == 1
