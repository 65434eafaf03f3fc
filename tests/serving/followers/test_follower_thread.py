"""The reading thread: it waits for a log that is away, and says so once that has lasted; at rest it wakes
seldom."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from recsys.events.event_types import Item
from recsys.events.records import topics
from recsys.log.protocol import LogUnavailable, MemoryLog
from serving.followers.follower_thread import _IDLE_S, _REST_S, PATIENCE_S, FollowerThread
from serving.followers.followers import Batch
from serving.followers.items import ItemsFollower


class Reader:
    """Stands in for the followers: as long as ``away`` is set, the log is."""

    def __init__(self) -> None:
        self.away = ""
        self.asked = 0
        self.batch = Batch()

    def catch_up(self, stopped: Callable[[], bool]) -> None:
        self.read()

    def read(self) -> Batch:
        self.asked += 1
        if self.away:
            raise LogUnavailable(self.away)
        return self.batch


def asked_again(reader: Reader, times: int = 2) -> None:
    """Waits until the thread has read anew, so that what it found before is told."""
    until = reader.asked + times
    deadline = time.monotonic() + 30
    while reader.asked < until:
        assert time.monotonic() < deadline, "the thread doesn't read"
        time.sleep(0.005)


@pytest.mark.parametrize("from_the_start", [True, False])
def test_a_log_that_is_away_is_told_once_it_lasts_and_no_longer_than_it_does(
    monkeypatch: pytest.MonkeyPatch, from_the_start: bool
) -> None:
    monkeypatch.setattr("serving.followers.follower_thread._RETRY_S", 0.005)
    log, reader, now_s = MemoryLog(), Reader(), [100.0]
    for topic in topics(1):
        log.create(topic)
    follower = FollowerThread(log, reader, lambda: now_s[0])  # type: ignore[arg-type]
    if from_the_start:
        reader.away = "disk gone"
    follower.start(None)  # type: ignore[arg-type]
    try:
        asked_again(reader)
        reader.away = "disk gone"
        asked_again(reader)
        now_s[0] += PATIENCE_S
        asked_again(reader)
        assert follower.away == ""  # a short absence is nobody's business
        now_s[0] += 1
        assert follower.away == "the log has been away for 6 s: disk gone"
        reader.away = ""
        asked_again(reader)
        assert follower.away == ""
        reader.away = "disk gone again"  # is counted anew
        asked_again(reader)
        now_s[0] += PATIENCE_S
        assert follower.away == "" and follower.failure == ""
    finally:
        follower.stop()


def test_the_thread_waits_longer_once_nothing_has_come_for_a_second() -> None:
    log, reader, now_s, waits_s = MemoryLog(), Reader(), [100.0], list[float]()
    for topic in topics(1):
        log.create(topic)
    log.wait = lambda topic, timeout_s: waits_s.append(timeout_s)  # type: ignore[method-assign]
    follower = FollowerThread(log, reader, lambda: now_s[0])  # type: ignore[arg-type]
    handed: list[Any] = []
    items = ItemsFollower(log, None)  # type: ignore[arg-type]
    follower._hand_over = handed.append  # type: ignore[assignment, method-assign]
    comes_after_s = [(0.0, False), (0.9, False), (0.2, False), (0.2, True), (0.9, False)]
    for passed_s, comes in [*comes_after_s, (0.2, False)]:
        now_s[0] += passed_s
        reader.batch = Batch([(items, [(Item(time_ms=1, item_id="v"), 0)] if comes else [])])
        follower._follow_once()
    assert waits_s == [_IDLE_S, _IDLE_S, _REST_S, _IDLE_S, _REST_S] and len(handed) == 1
