"""The reading thread: it waits for a log that is away, and says so once that has lasted."""

import time
from collections.abc import Callable

import pytest

from recsys.events.records import topics
from recsys.log.protocol import LogUnavailable, MemoryLog
from serving.replica.log_follower import PATIENCE_S, LogFollower
from serving.replica.state_reader import Batch


class Reader:
    """Stands in for a StateReader: as long as ``away`` is set, the log is."""

    def __init__(self) -> None:
        self.away = ""
        self.asked = 0

    def catch_up(self, stopped: Callable[[], bool]) -> None:
        self.read()

    def read(self) -> Batch:
        self.asked += 1
        if self.away:
            raise LogUnavailable(self.away)
        return Batch()


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
    monkeypatch.setattr("serving.replica.log_follower._RETRY_S", 0.005)
    log, reader, now_s = MemoryLog(), Reader(), [100.0]
    for topic in topics(1):
        log.create(topic)
    follower = LogFollower(log, reader, lambda: now_s[0])  # type: ignore[arg-type]
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
