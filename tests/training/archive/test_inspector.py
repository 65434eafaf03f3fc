"""What can't be read of the topics that many read: one dead letter each, and everybody goes on."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from parameter_server.shard.lanes import LaneGradients, RowGradients
from parameter_server.shard.shard import Shard, ShardSpec
from recsys.config.system_config import TableConfig
from recsys.events.control_records import Erasure, Experiments, Live
from recsys.events.event_types import Item, Tick, encode
from recsys.events.records import (
    CONTROL,
    DEAD_LETTERS,
    DELTAS,
    EXAMPLES,
    ITEM_COUNTS,
    ITEM_STATE,
    ITEMS,
    STEPS,
    DeadLetter,
    Delta,
    ItemState,
    Range,
    Step,
    pack,
    topics,
    unpack,
)
from recsys.log.protocol import Append, LogLost, LogUnavailable, MemoryLog
from recsys.log.sqlite_log import SqliteLog
from recsys.process.part_snapshot import PartState
from tests.support.clock import Clock
from tests.support.training.small_feed import toy_log
from training.archive.inspector import Inspector

STEP = Step(line="main", epoch=0, step=1, ranges=[], examples=0, lanes=4, time_ms=0, config="")
GOOD = {
    ITEMS: [encode(Item(time_ms=1, item_id="v1")), encode(Item(time_ms=2, item_id=2, removed=True))],
    ITEM_STATE: [pack(ItemState(offsets=[1], keys=b"", values=b"", last_ms=b""))],
    ITEM_COUNTS: [pack(ItemState(offsets=[1], keys=b"", values=b"", last_ms=b"", whole=True))],
    STEPS: [pack(STEP)],
    CONTROL: [pack(Live(line="main", epoch=0)), pack(Experiments(revision=1)), pack(Erasure(user_id="u1"))],
}
NO_TEXT = b"\x81\xa4line\xa1\xff"
DEEP = b"\x91" * 5000 + b"\xc0"
BAD = [b"\xc1rubbish", b"", NO_TEXT, DEEP, encode(Tick(time_ms=1))]


def inspect(log: MemoryLog, folder: Path, clock: Clock | None = None) -> Inspector:
    return Inspector(log, PartState(folder, "archive"), clock or Clock())


def append(log: MemoryLog, topic: str, values: Sequence[bytes]) -> None:
    log.append(topic, [Append(0, b"key", value) for value in values])


def letters(log: MemoryLog) -> list[tuple[str, int, bytes]]:
    found = [unpack(r.value, DeadLetter) for r in log.read(DEAD_LETTERS, 0, 0)]
    assert all(letter.reason for letter in found)
    return [(letter.topic, letter.offset, letter.raw) for letter in found]


@pytest.mark.parametrize("topic", GOOD)
def test_each_record_that_cant_be_read_has_one_letter(topic: str, tmp_path: Path) -> None:
    log = toy_log()
    append(log, topic, [*GOOD[topic], *BAD, *GOOD[topic]])
    expected = [(topic, len(GOOD[topic]) + n, value) for n, value in enumerate(BAD)]
    for save in (False, True, False):  # killed before it saved, and restarted
        its = inspect(log, tmp_path)
        while its.turn():
            pass
        if save:
            its.save()
        assert letters(log) == expected
        assert its.offsets[topic][0] == log.end(topic, 0)
    assert its.unreadable == 0  # nothing is judged again after a saved place
    append(log, topic, [b"\xc1"])
    its.turn()
    assert its.unreadable == 1 and len(letters(log)) == len(BAD) + 1


def test_it_saves_by_its_clock(tmp_path: Path) -> None:
    log, clock = toy_log(), Clock()
    append(log, STEPS, GOOD[STEPS])
    its = inspect(log, tmp_path, clock)
    its.turn()
    assert PartState(tmp_path, "archive").load(log.id) is None
    clock.now_ms = 30_000
    its.turn()
    saved = PartState(tmp_path, "archive").load(log.id)
    assert saved is not None and saved.offsets[STEPS] == {0: 1}


def test_letters_expire_although_no_other_comes(tmp_path: Path) -> None:
    clock = Clock()
    log = SqliteLog(tmp_path / "log", clock=clock)
    for topic in topics(4, retention_hours=1):
        log.create(topic)
    inspector = Inspector(log, PartState(tmp_path, "archive"), clock)
    append(log, DEAD_LETTERS, [b"what a viewer sent"])
    append(log, EXAMPLES, [b"what a viewer did"] * 3_000)  # more than a slice
    for hours, turns, begins in ((1, 1, (0, 0)), (2, 2, (1, 3_000))):
        clock.now_ms = hours * 3_600_000
        for _ in range(turns):
            inspector.turn()
        assert (log.begin(DEAD_LETTERS, 0), log.begin(EXAMPLES, 0)) == begins
    log.close()


def test_item_states_that_were_trimmed_are_passed_over(tmp_path: Path) -> None:
    log = toy_log()
    its = inspect(log, tmp_path)
    append(log, ITEM_STATE, GOOD[ITEM_STATE] * 5)
    log.trim(ITEM_STATE, 0, 4)
    append(log, ITEM_STATE, BAD[:1])
    while its.offsets[ITEM_STATE][0] < log.end(ITEM_STATE, 0):
        its.turn()
    assert letters(log) == [(ITEM_STATE, 5, BAD[0])]


def test_a_log_that_ends_before_its_place_is_refused(tmp_path: Path) -> None:
    log = toy_log()
    PartState(tmp_path, "archive").save(log.id, {STEPS: {0: 9}}, b"")
    with pytest.raises(LogLost, match="beyond the end"):
        inspect(log, tmp_path).turn()
    with pytest.raises(LogLost, match="another|removed or replaced"):
        inspect(toy_log(), tmp_path)


@pytest.mark.parametrize("through", [0, 1, 2])
def test_letters_that_could_not_be_sent_are_sent_once(tmp_path: Path, through: int) -> None:
    class Flaky(MemoryLog):
        fails = 1

        def append(self, topic: str, records: Sequence[Append]) -> list[int]:
            if topic == DEAD_LETTERS and self.fails:
                self.fails -= 1
                super().append(topic, records[:through])
                raise LogUnavailable("away")
            return super().append(topic, records)

    log = Flaky()
    for topic in topics(1):
        log.create(topic)
    append(log, CONTROL, BAD[:2])
    its = inspect(log, tmp_path)
    with pytest.raises(LogUnavailable):
        its.turn()
    its.save()  # nothing: what it read has no letter yet
    while its.turn():
        pass
    assert letters(log) == [(CONTROL, 0, BAD[0]), (CONTROL, 1, BAD[1])]


def refusing(log: MemoryLog, again: int = 1) -> None:
    """Step 2 of two shards, both of which refuse something; step 1 and 3 are sound."""
    steps = [
        replace(STEP, step=n, ranges=[Range(1, 3 * n, 3 * n + 2), Range(2, n, n + 1)], examples=3, filled=2)
        for n in (1, 2, 3)
    ]
    append(log, STEPS, [pack(step) for step in steps])
    for _ in range(again):
        for part in (0, 1):
            shard = Shard(ShardSpec((TableConfig("t", 2, 0.1),), lanes=2, part=part, parts=2))
            for step in (1, 2, 3):
                bad = np.full((1, 2), np.nan if step == 2 else 1.0, np.float32)
                row = RowGradients(np.array([part], np.int64), bad, np.ones(1, np.int32))
                delta = shard.learn(step, 0, [LaneGradients(0), LaneGradients(1, {"t": row})])
                assert delta is not None
                append(log, DELTAS, [pack(delta)])


def test_a_step_of_which_something_is_refused_is_set_aside_once_with_its_offsets(tmp_path: Path) -> None:
    log = toy_log()
    refusing(log, again=2)  # shards came back, and published again
    inspector = inspect(log, tmp_path)
    while inspector.turn():
        pass
    again = inspect(log, tmp_path)  # it was killed before it saved
    while again.turn():
        pass
    (record,) = log.read(DEAD_LETTERS, 0, 0)
    letter = unpack(record.value, DeadLetter)
    assert (letter.topic, letter.offset, unpack(letter.raw, Step).step) == (STEPS, 1, 2)
    parts = ("step 2 of main/0", "shard 0", "of lanes 1", "1: 6 to 7, 2: 2 to 2", "3 examples",
             "first 2 of 4 lanes")  # fmt: skip
    assert all(part in letter.reason for part in parts), letter.reason
    assert inspector.unreadable == 0 and inspector.set_aside == 4


def test_a_step_that_was_trimmed_since_the_last_rejection_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = toy_log()
    refusing(log)
    inspector = inspect(log, tmp_path)
    while inspector.turn():
        pass
    later = [pack(replace(STEP, step=n)) for n in range(4, 200)]
    append(log, STEPS, later)
    log.trim(STEPS, 0, 150)
    refused = [unpack(record.value, Delta) for record in log.read(DELTAS, 0, 0)][1]
    for step in (190, 4):
        append(log, DELTAS, [pack(replace(refused, step=step))])
        while inspector.turn():
            pass
    assert "the log has no record" in caplog.text
    assert inspector.set_aside == 3  # twice step 2, and step 190
