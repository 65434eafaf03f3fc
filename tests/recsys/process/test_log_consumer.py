from collections.abc import Sequence
from typing import Any, cast

import pytest

from recsys.events.records import DEAD_LETTERS, DeadLetter, unpack
from recsys.log.protocol import Append, Log, LogLost, LogUnavailable, MemoryLog, Record, Topic
from recsys.process.log_consumer import Consumer, DeadLetters, check_same, hold_available


@pytest.fixture
def log() -> MemoryLog:
    log = MemoryLog()
    log.create(Topic("t", 3))
    log.create(Topic(DEAD_LETTERS))
    log.append("t", [Append(i % 3, b"", b"%d" % i) for i in range(30)])
    return log


def values(polled: list[tuple[int, Record]]) -> list[int]:
    return [int(record.value) for _, record in polled]


def test_it_reads_its_partitions_and_goes_on(log: MemoryLog) -> None:
    consumer = Consumer(log, "t", [0, 2])
    first = consumer.poll(limit=4)
    assert [p for p, _ in first] == [0] * 4 + [2] * 4  # no partition waits for another to be read up
    assert values(first) == [0, 3, 6, 9, 2, 5, 8, 11]
    assert consumer.offsets == {0: 4, 2: 4}
    assert len(consumer.poll()) == 12 and consumer.poll() == []
    log.append("t", [Append(2, b"", b"99"), Append(1, b"", b"98")])
    assert values(consumer.poll()) == [99]


def test_without_an_offset_it_begins_where_the_log_does(log: MemoryLog) -> None:
    log.trim("t", 1, 7)
    consumer = Consumer(log, "t", [0, 1], {0: 9})
    assert consumer.offsets == {0: 9, 1: 7}


def test_a_state_resumes_exactly_where_it_was(log: MemoryLog) -> None:
    before = Consumer(log, "t", [0, 1, 2])
    seen = values(before.poll(limit=3))
    after = Consumer(log, "t", [0, 1, 2], dict(before.offsets))
    assert sorted(seen + values(after.poll())) == list(range(30))


def test_a_state_of_another_log_is_refused_with_what_to_do(log: MemoryLog) -> None:
    with pytest.raises(LogLost, match=f"from log other, this one is {log.id}.*remove the state"):
        check_same(log, "other", "a state")


def test_a_state_that_the_log_passed_is_refused(log: MemoryLog) -> None:
    log.trim("t", 0, 5)
    with pytest.raises(LogLost, match="retention passed it"):
        Consumer(log, "t", [0, 1], {0: 4, 1: 0}).poll()
    with pytest.raises(LogLost, match="beyond the end"):
        Consumer(log, "t", [0, 1], {0: 5, 1: 11}).poll()
    Consumer(log, "t", [0, 1], {0: 5, 1: 10}).poll()


def test_a_poll_that_fails_has_moved_nothing(log: MemoryLog) -> None:
    consumer = Consumer(log, "t", [0, 1])
    log.trim("t", 1, 3)
    with pytest.raises(LogLost):
        consumer.poll()
    assert consumer.offsets == {0: 0, 1: 0}


class Trimmed:
    """A log of which another process drops records, each time once an answer is on its way."""

    def __init__(self, log: MemoryLog, before: list[int]) -> None:
        self._log, self._before = log, before

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def begin(self, topic: str, partition: int) -> int:
        offset = self._log.begin(topic, partition)
        if partition == 1 and self._before:
            self._log.trim(topic, partition, self._before.pop(0))
        return offset


def test_what_retention_drops_meanwhile_is_not_held(log: MemoryLog) -> None:
    trimmed = cast(Log, Trimmed(log, [2, 3, 4]))
    assert hold_available(trimmed, "fold", "t", {0: 4, 1: 1}) == {0: 4, 1: 4}
    assert [log.holds("t", partition) for partition in range(3)] == [{"fold": 4}, {"fold": 4}, {}]
    with pytest.raises(LogLost, match="beyond the end"):
        hold_available(log, "fold", "t", {0: 11})


def standing(log: MemoryLog) -> list[DeadLetter]:
    return [unpack(r.value, DeadLetter) for r in log.read(DEAD_LETTERS, 0, 0)]


def test_dead_letters_keep_what_was_there_and_are_counted(log: MemoryLog) -> None:
    letters = DeadLetters(log, ("t",))
    letters.put("t", 2, Record(7, b"u1", b"\xff\x00"), "no event " * 1000, time_ms=5)
    letters.put("t", 0, Record(8, b"", b""), "empty")
    assert standing(log) == [] and letters.send() == 2 and letters.send() == 0
    [first, second] = standing(log)
    assert (first.topic, first.partition, first.offset, first.time_ms) == ("t", 2, 7, 5)
    assert first.raw == b"\xff\x00" and len(first.reason) == 500
    assert second.reason == "empty"
    assert letters.counts == {"t": 2}


def test_a_record_has_one_letter_whoever_reads_it_again(log: MemoryLog) -> None:
    log.append(DEAD_LETTERS, [Append(0, b"", b"\xc1 no letter")])
    for _ in range(3):  # restarts
        letters = DeadLetters(log, ("t", "u"))
        for _ in range(2):
            for topic, offset in (("t", 7), ("t", 8), ("u", 7)):
                letters.put(topic, 0, Record(offset, b"", b"x"), "?")
            letters.send()
    places = [
        (x.topic, x.offset) for x in (unpack(r.value, DeadLetter) for r in log.read(DEAD_LETTERS, 0, 1))
    ]
    assert places == [("t", 7), ("t", 8), ("u", 7)]


@pytest.mark.parametrize("through", [0, 1, 2])
def test_letters_of_a_failed_append_are_sent_once(log: MemoryLog, through: int) -> None:
    class Flaky(MemoryLog):
        fails = 1

        def append(self, topic: str, records: Sequence[Append]) -> list[int]:
            if self.fails:
                self.fails -= 1
                super().append(topic, records[:through])
                raise LogUnavailable("away")
            return super().append(topic, records)

    flaky = Flaky()
    flaky.create(Topic(DEAD_LETTERS))
    letters = DeadLetters(flaky, ("t",))
    for attempt in range(2):
        letters.put("t", 0, Record(1, b"", b"x"), "?")
        letters.put("t", 0, Record(2, b"", b"x"), "?")
        if attempt == 0:
            with pytest.raises(LogUnavailable):
                letters.send()
    letters.send()
    assert [letter.offset for letter in standing(flaky)] == [1, 2]


def test_what_was_put_and_thrown_away_can_be_put_again(log: MemoryLog) -> None:
    letters = DeadLetters(log, ("t",))
    letters.put("t", 0, Record(1, b"", b"x"), "?")
    letters.forget()
    letters.put("t", 0, Record(1, b"", b"x"), "?")
    assert letters.send() == 1


def test_another_parts_letters_are_not_put(log: MemoryLog) -> None:
    with pytest.raises(AssertionError, match="belong to another part"):
        DeadLetters(log, ("t",)).put("u", 0, Record(1, b"", b"x"), "?")
