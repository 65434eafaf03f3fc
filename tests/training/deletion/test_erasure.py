"""Who asks to be forgotten is taken out of the log, its dead letters and the archive; nothing else moves."""

import shutil
from pathlib import Path

import msgspec
import pytest

from recsys.events.control_records import Erasure, Unlearning
from recsys.events.event_types import Tick, User, decode, encode
from recsys.events.hashing import partition_of
from recsys.events.records import (
    CONTROL,
    DEAD_LETTERS,
    EVENTS,
    EXAMPLES,
    DeadLetter,
    ErasedExample,
    Example,
    non_example,
    pack,
    topics,
    unpack,
)
from recsys.log.protocol import Append, Log, LogUnchangeable, MemoryLog, Record
from recsys.log.sqlite_log import SqliteLog
from recsys.process.log_consumer import readable
from recsys.process.part_snapshot import PartState
from tests.support.small_feed import (
    FEATURES,
    PARTITIONS,
    START_MS,
    append_events,
    feed,
    toy_config,
    toy_log,
)
from training.archive.writer import Archive, archived_rows
from training.deletion import erasure
from training.deletion.erasure import EVERY_MS, Eraser, digest_of_key, erased_users
from training.joining.joiner_loop import JoinerLoop

USER = "u3"
PARTITION = partition_of(USER, PARTITIONS)
FOLDS = ("counters", "session-fold")


class Clock:
    now_ms = 0

    def __call__(self) -> int:
        return self.now_ms


class Unchangeable(MemoryLog):
    """As Kafka: nothing can be held or changed."""

    def hold(self, name: str, topic: str, partition: int, offset: int) -> None: ...

    def replace(self, topic: str, partition: int, records: object) -> int:
        raise LogUnchangeable("no")


@pytest.fixture(params=["memory", "sqlite"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Log:
    if request.param == "memory":
        return toy_log()
    log = SqliteLog(tmp_path / "log")
    for topic in topics(PARTITIONS):
        log.create(topic)
    return log


class System:
    """The parts that write what is erased, and those that hold it."""

    def __init__(self, log: Log, folder: Path) -> None:
        self.log, self.folder, self.clock = log, folder, Clock()
        self.joiner = JoinerLoop(
            log, toy_config(), FEATURES, self.clock, PartState(folder, "joiner")
        )
        self.archive = Archive(log, folder / "archive", self.clock)
        self.begin_again()

    def begin_again(self) -> None:
        state = PartState(self.folder, erasure.PART)
        self.eraser = Eraser(self.log, self.folder / "archive", state, self.clock)

    def turn(self) -> None:
        """Everything that there is to do; folds and snapshots come after all of it."""
        for part in (self.joiner, self.archive):
            while part.turn():
                pass
        self.archive.flush()
        self.joiner.save()  # it holds what the snapshot before this one needs
        self.joiner.save()
        for partition in range(PARTITIONS):
            for name in FOLDS:
                self.log.hold(name, EVENTS, partition, self.log.end(EVENTS, partition))
            end = self.log.end(EXAMPLES, partition)
            self.log.hold("snapshots/main", EXAMPLES, partition, end)

    def forget(self) -> int:
        tombstone = User(time_ms=START_MS + 60_000, user_id=USER, removed=True)
        append = Append(PARTITION, USER.encode(), encode(tombstone))
        (offset,) = self.log.append(EVENTS, [append])
        said = Erasure(user_id=USER, offset=offset)
        self.log.append(CONTROL, [Append(0, b"", pack(said))])
        return offset

    def look(self) -> None:
        self.clock.now_ms += EVERY_MS
        self.eraser.turn()

    def all(self) -> list[tuple[str, int, Record]]:
        return [
            (topic, partition, record)
            for topic in (EVENTS, EXAMPLES, DEAD_LETTERS, CONTROL)
            for partition in range(self.log.partitions(topic))
            for record in self.log.read(topic, partition, 0, 10_000)
        ]

    def archived(self, topic: str) -> list[tuple[int, int, bytes, bytes]]:
        columns = ("partition", "offset", "key", "value")
        return list(archived_rows(self.folder / "archive", topic, columns))


def names(value: bytes) -> bool:
    return value.find(b"\xa2" + USER.encode()) >= 0 or value == USER.encode()


def test_nothing_of_a_forgotten_user_is_left_and_all_else_stays(log: Log, tmp_path: Path) -> None:
    system = System(log, tmp_path)
    append_events(log, feed(60))
    letter = DeadLetter(topic=EVENTS, partition=PARTITION, offset=1, reason="r", raw=b"\xa2u3")
    log.append(DEAD_LETTERS, [Append(0, USER.encode(), pack(letter))])
    system.turn()
    before, archived = system.all(), {t: system.archived(t) for t in (EVENTS, EXAMPLES)}
    assert any(names(r.key) for t, _, r in before if t == EXAMPLES)
    offset = system.forget()
    append_events(log, [Tick(time_ms=START_MS + 10_000_000)])
    system.turn()
    for _ in range(3):
        system.look()
        system.turn()
    assert (system.eraser.waiting, system.eraser.done) == (0, 1)

    after = {(topic, p, r.offset): r for topic, p, r in system.all()}
    assert not any(names(r.key) or names(r.value) for r in after.values())
    for topic, partition, record in before:
        left = after[topic, partition, record.offset]
        if not names(record.key):
            assert left == record
        elif topic == EVENTS:
            assert decode(left.value) == Tick(time_ms=decode(record.value).time_ms)
        elif topic == EXAMPLES:
            was = unpack(record.value, Example)
            empty = ErasedExample(sequence=was.sequence, closed_ms=was.closed_ms)
            assert non_example(left.value) == empty
        else:
            was_letter = unpack(left.value, DeadLetter)
            assert (was_letter.topic, was_letter.offset, was_letter.raw) == (EVENTS, 1, b"")
    for topic, rows in archived.items():
        found = system.archived(topic)
        assert not any(names(row[2]) or names(row[3]) for row in found)
        assert set(found) >= {row for row in rows if not names(row[2])}
    digest = digest_of_key(log.id, USER.encode())
    done = Erasure(user_id="", offset=offset, digest=digest)
    assert unpack(after[CONTROL, 0, 0].value, Erasure) == done
    system.archive = Archive(log, tmp_path / "archive", system.clock)  # finds its place by names
    assert system.archive.turn() == 0


def test_what_may_be_read_again_stays_until_it_has_been_passed(tmp_path: Path) -> None:
    log = toy_log()
    system = System(log, tmp_path)
    append_events(log, feed(30))
    system.turn()
    log.hold("joiner", EVENTS, PARTITION, log.end(EVENTS, PARTITION))
    log.hold("counters", EVENTS, PARTITION, 4)
    log.hold("snapshots/main", EXAMPLES, PARTITION, 2)
    system.forget()
    system.look()
    for topic, held in ((EVENTS, 4), (EXAMPLES, 2)):
        keyed = log.keyed(topic, PARTITION, [USER.encode()], 1 << 60)
        assert keyed and min(keyed) >= held
    assert system.eraser.waiting == 1
    append_events(log, [Tick(time_ms=START_MS + 10_000_000)])
    system.begin_again()  # it was killed
    for _ in range(3):
        system.turn()
        system.look()
    assert system.eraser.waiting == 0
    assert log.keyed(EVENTS, PARTITION, [USER.encode()], 1 << 60) == []


def test_a_fold_that_never_held_anything_keeps_the_log_as_it_is(tmp_path: Path) -> None:
    log = toy_log()
    system = System(log, tmp_path)
    append_events(log, feed(30))
    system.turn()
    log.release("session-fold", EVENTS)
    before = log.keyed(EVENTS, PARTITION, [USER.encode()], 1 << 60)
    offset = system.forget()
    system.look()
    assert log.keyed(EVENTS, PARTITION, [USER.encode()], 1 << 60) == [*before, offset]
    assert system.eraser.waiting == 1


def test_who_comes_back_is_not_erased_again(tmp_path: Path) -> None:
    log = toy_log()
    system = System(log, tmp_path)
    append_events(log, feed(30))
    system.turn()
    system.forget()
    again = [e for e in feed(90, first=30) if getattr(e, "user_id", "") in (USER, "")]
    append_events(log, [*again, Tick(time_ms=START_MS + 10_000_000)])
    system.turn()
    for _ in range(3):
        system.look()
        system.turn()
    assert system.eraser.waiting == 0
    examples = log.keyed(EXAMPLES, PARTITION, [USER.encode()], 1 << 60)
    assert examples and log.keyed(EVENTS, PARTITION, [USER.encode()], 1 << 60)
    assert any(names(row[2]) for row in system.archived(EXAMPLES))


def test_on_a_log_that_cannot_change_the_archive_is_erased_all_the_same(tmp_path: Path) -> None:
    log = Unchangeable()
    for topic in topics(PARTITIONS):
        log.create(topic)
    system = System(log, tmp_path)
    append_events(log, feed(60))
    system.turn()
    system.forget()
    system.look()
    assert system.eraser.waiting == 1  # the joiner hasn't come so far
    system.turn()
    for _ in range(3):
        system.look()
    assert system.eraser.waiting == 0
    assert not any(names(row[2]) for t in (EVENTS, EXAMPLES) for row in system.archived(t))
    assert any(names(record.key) for _, _, record in system.all())


def test_it_is_done_when_the_files_of_the_log_are_scrubbed_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = toy_log()
    system = System(log, tmp_path)
    append_events(log, feed(30))
    system.turn()
    system.forget()
    append_events(log, [Tick(time_ms=START_MS + 10_000_000)])
    busy, scrubbed = {EXAMPLES}, set[str]()

    def scrub(topic: str) -> bool:
        scrubbed.add(topic)
        return topic not in busy

    monkeypatch.setattr(log, "scrub", scrub)
    for _ in range(3):
        system.turn()
        system.look()
        system.begin_again()  # it was killed
    assert log.keyed(EVENTS, PARTITION, [USER.encode()], 1 << 60) == []
    assert system.eraser.waiting == 1
    busy.clear()
    put_aside = [
        tmp_path / name
        for name in (
            "parts/joiner/state.broken.msgpack", "parts/shards/main-0-0.wal.damaged",
            "log/events.sqlite.damaged", "log/events.sqlite-wal.damaged",
        )
    ]  # fmt: skip
    for file in put_aside:
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_bytes(b"a state with the user in it, perhaps")
    system.look()
    assert system.eraser.waiting == 0
    assert not any(file.exists() for file in put_aside)
    assert scrubbed == {EVENTS, EXAMPLES, DEAD_LETTERS, CONTROL}


def test_users_that_are_unlearned_wait_and_their_request_names_them_no_more(
    log: Log, tmp_path: Path
) -> None:
    """A replay must know whose examples were whose."""
    system = System(log, tmp_path)
    append_events(log, feed(60))
    asked = Unlearning(id="a", users={USER: log.end(EVENTS, PARTITION), "other": 7})
    log.append(CONTROL, [Append(0, b"", pack(asked))])
    system.forget()
    append_events(log, [Tick(time_ms=START_MS + 10_000_000)])
    system.turn()
    for _ in range(3):
        system.look()
        system.turn()
    assert (system.eraser.erased, system.eraser.waiting) == (0, 1)
    system.begin_again()
    system.look()
    assert (system.eraser.erased, system.eraser.waiting) == (0, 1)

    over = msgspec.structs.replace(asked, users={}, state="done")
    held = Unlearning(id="b", users={USER: 3, "other": 7})  # by an earlier quarantine
    done = msgspec.structs.replace(held, users={}, state="done")
    log.append(CONTROL, [Append(0, b"", pack(record)) for record in (over, held, done)])
    for _ in range(3):
        system.look()
        system.turn()
    assert (system.eraser.waiting, system.eraser.done) == (0, 1) and system.eraser.erased > 0
    unlearnings = [u.users for u in readable(log, CONTROL, Unlearning)]
    assert unlearnings == [{"other": 7}, {}, {"other": 7}, {}]
    assert not any(names(r.key) or names(r.value) for _, _, r in system.all())


def test_an_older_copy_tells_whom_a_newer_one_erased(tmp_path: Path) -> None:
    """A backup from before the erasure, by what ``control`` says later: names, then digests of them."""
    log = SqliteLog(tmp_path / "a" / "log")
    for topic in topics(PARTITIONS):
        log.create(topic)
    system = System(log, tmp_path / "a")
    append_events(log, feed(60))
    system.turn()
    log.close()
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    system.__init__(SqliteLog(tmp_path / "a" / "log"), tmp_path / "a")  # type: ignore[misc]
    copy, archive = SqliteLog(tmp_path / "copy" / "log"), tmp_path / "copy" / "archive"
    system.forget()
    assert erased_users(copy, archive, readable(system.log, CONTROL, Erasure)) == [USER]
    append_events(system.log, [Tick(time_ms=START_MS + 10_000_000)])
    for _ in range(3):
        system.turn()
        system.look()
    assert system.eraser.done == 1
    erasures = list(readable(system.log, CONTROL, Erasure))
    assert [erasure.user_id for erasure in erasures] == [""]
    assert erased_users(copy, archive, erasures) == [USER]
    copy.trim(EVENTS, PARTITION, copy.end(EVENTS, PARTITION))
    assert erased_users(copy, archive, erasures) == [USER]
    assert erased_users(system.log, tmp_path / "a" / "archive", erasures) == []
