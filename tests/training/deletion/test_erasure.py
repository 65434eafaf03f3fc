"""Who asks to be forgotten is taken out of the log, its dead letters and the archive; nothing else moves."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

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
from recsys.process.worker_share import Share
from tests.support.clock import Clock
from tests.support.simulation.bit_flips import flip_bit
from tests.support.training.small_feed import (
    FEATURES,
    PARTITIONS,
    START_MS,
    append_events,
    feed,
    toy_config,
    toy_log,
)
from training.archive import files
from training.archive.digest import check_digest
from training.archive.writer import Archive, archived_rows
from training.deletion import erasure
from training.deletion.erasure import EVERY_MS, Eraser, digest_of_key, erased_users
from training.joining.joiner_loop import JoinerLoop

USER = "u3"
PARTITION = partition_of(USER, PARTITIONS)
FOLDS = ("counters", "session-fold")


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
        self.joiner = JoinerLoop(log, toy_config(), FEATURES, self.clock, PartState(folder, "joiner"))
        self.archive = Archive(log, folder / "archive", self.clock)
        self.begin_again()

    def begin_again(self, workers: int = 1) -> None:
        state = PartState(self.folder, erasure.PART)
        self.erasers = [
            Eraser(self.log, self.folder / "archive", state, self.clock, Share(index, workers))
            for index in range(workers)
        ]
        self.eraser = self.erasers[0]

    @property
    def waiting(self) -> list[int]:
        return [eraser.waiting for eraser in self.erasers]

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

    def forget(self, user: str = USER) -> int:
        tombstone = User(time_ms=START_MS + 60_000, user_id=user, removed=True)
        append = Append(partition_of(user, PARTITIONS), user.encode(), encode(tombstone))
        (offset,) = self.log.append(EVENTS, [append])
        said = Erasure(user_id=user, offset=offset)
        self.log.append(CONTROL, [Append(0, b"", pack(said))])
        return offset

    def look(self) -> None:
        self.clock.now_ms += EVERY_MS
        for eraser in self.erasers:
            eraser.turn()

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


def test_many_users_are_searched_for_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search reads all of a topic, and all files of its archive."""
    log = toy_log()
    system = System(log, tmp_path)
    append_events(log, feed(30))
    for number in range(200):
        system.forget(f"u{number}")
    append_events(log, [Tick(time_ms=START_MS + 10_000_000)])
    system.turn()
    searches, search_log, search_file = list[str](), log.keyed, files._has_key
    monkeypatch.setattr(log, "keyed", lambda *of: searches.append("log") or search_log(*of))
    monkeypatch.setattr(files, "_has_key", lambda *of: searches.append("") or search_file(*of))
    for _ in range(3):
        system.look()
        system.turn()
    assert (system.eraser.waiting, system.eraser.done) == (0, 200)
    keys = {record.key for topic, _, record in system.all() if topic != CONTROL}
    keys |= {row[2] for topic in (EVENTS, EXAMPLES) for row in system.archived(topic)}
    assert keys <= {b"", b"None"}  # erased records, and ticks
    assert len(searches) < 100


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
            "parts/joiner/state.broken.msgpack",
            "parts/shards/main-0-0.wal.damaged",
            "log/events.sqlite.damaged",
            "log/events.sqlite-wal.damaged",
        )
    ]
    for file in put_aside:
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_bytes(b"a state with the user in it, perhaps")
    system.look()
    assert system.eraser.waiting == 0
    assert not any(file.exists() for file in put_aside)
    assert scrubbed == {EVENTS, EXAMPLES, DEAD_LETTERS, CONTROL}


def test_users_that_are_unlearned_wait_and_their_request_names_them_no_more(log: Log, tmp_path: Path) -> None:
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
    assert erased_users(copy, archive, list(readable(system.log, CONTROL, Erasure))) == [USER]
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


USERS = ("u1", "u2", "u3", "u5", "u8")  # in all partitions


def asked(folder: Path, users: tuple[str, ...] = USERS) -> System:
    """A system that is to forget some users; each is unlearned in a request of several, too."""
    log = toy_log()
    log.id = "log"  # of which digests are made
    system = System(log, folder)
    append_events(log, feed(60))
    system.turn()
    old = Unlearning(id="a", users=dict.fromkeys((*users, "other"), 1), state="done")
    log.append(CONTROL, [Append(0, b"", pack(old))])
    for user in users:
        letter = DeadLetter(topic=EVENTS, partition=0, offset=1, reason="r", raw=user.encode())
        log.append(DEAD_LETTERS, [Append(0, user.encode(), pack(letter))])
        system.forget(user)
    append_events(log, [Tick(time_ms=START_MS + 10_000_000)])
    system.turn()
    return system


def finish(system: System) -> None:
    for _ in range(6):
        system.clock.now_ms += 40 * EVERY_MS  # between two scrubs
        system.look()
        system.turn()


def left(system: System) -> tuple[list[Any], list[Any], list[str]]:
    """All that a system has: log, archive, and bytes of snapshots that name a user."""
    files = [path for path in (system.folder / "parts").glob("erasures*/*")]
    named = [f.name for f in files if any(user.encode() in f.read_bytes() for user in USERS)]
    return system.all(), [system.archived(topic) for topic in (EVENTS, EXAMPLES)], named


def test_users_that_are_erased_by_workers_are_in_all_partitions() -> None:
    assert {partition_of(user, PARTITIONS) for user in USERS} == set(range(PARTITIONS))


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_erase_what_one_does(tmp_path: Path, workers: int) -> None:
    one = asked(tmp_path / "a")
    finish(one)
    several = asked(tmp_path / "b")
    several.begin_again(workers)
    assert all(several.waiting) and sum(several.waiting) == len(USERS)
    finish(several)
    assert sum(several.waiting) == one.eraser.waiting == 0
    assert sum(eraser.done for eraser in several.erasers) == one.eraser.done == len(USERS)
    assert left(several) == left(one) and left(one)[2] == []
    assert not any(names(r.key) or names(r.value) for _, _, r in several.all())


def test_the_first_worker_replaces_requests_once_their_worker_has_erased_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = asked(tmp_path, ("u1", USER))
    system.begin_again(3)
    log, turning, replaced = system.log, [0], list[tuple[int, str]]()
    replace = log.replace

    def noted(topic: str, partition: int, records: list[Record]) -> int:
        replaced.append((turning[0], topic))
        return replace(topic, partition, records)

    monkeypatch.setattr(log, "replace", noted)

    def turn(index: int) -> list[str]:
        turning[0] = index
        system.clock.now_ms += EVERY_MS
        system.erasers[index].turn()
        return [each.user_id for each in readable(log, CONTROL, Erasure)]

    owners = {user: partition_of(user, PARTITIONS) for user in ("u1", USER)}
    first, second = sorted(owners, key=owners.__getitem__)
    owner = owners[second]
    assert owner > 0
    assert second in turn(0) and second in turn(0), "the worker that has the user is still at it"
    assert second in turn(owner) and system.erasers[owner].waiting == 1
    assert second not in turn(0)
    assert system.erasers[owner].waiting == 1 and second not in turn(owner)
    assert system.erasers[owner].waiting == 0 == system.erasers[0].done * (owners[first] > 0)
    assert {index for index, topic in replaced if topic == CONTROL} == {0}
    assert {index for index, topic in replaced if topic == EVENTS} >= {owner}


@pytest.mark.parametrize("harmed", [["state.msgpack"], ["state.msgpack", "state.previous.msgpack"]])
def test_a_damaged_snapshot_of_one_worker_neither_ends_another_nor_is_moved_by_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, harmed: list[str]
) -> None:
    system = asked(tmp_path)
    system.begin_again(3)
    system.look()
    system.look()
    folder = tmp_path / "parts" / f"{erasure.PART}-p1"
    whole = {path: path.read_bytes() for path in folder.iterdir()}
    for name in harmed:
        (folder / name).write_bytes(b"broken")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for _ in range(3):
        system.clock.now_ms += EVERY_MS
        system.erasers[0].turn()
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    warnings = [r for r in caplog.records if "requests of another worker wait" in r.message]
    assert len(warnings) == len(harmed) - 1, "once, where none can be read"
    for path, raw in whole.items():
        path.write_bytes(raw)
    finish(system)
    assert sum(system.waiting) == 0
    assert [e.user_id for e in readable(system.log, CONTROL, Erasure)] == [""] * len(USERS)


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@example([(2, [1, 0]), (3, [2]), (1, [0, 0])])
@given(st.lists(st.tuples(st.integers(1, 3), st.lists(st.integers(0, 2), max_size=4)), max_size=5))
def test_requests_move_with_their_partitions_when_the_number_of_workers_changes(
    changes: list[tuple[int, list[int]]],
) -> None:
    """Each change: the number of workers, and those that have a turn before all are killed."""
    with TemporaryDirectory() as folder:
        system = asked(Path(folder) / "a", USERS[:3])
        for workers, turns in changes:
            system.begin_again(workers)
            for index in turns:
                system.clock.now_ms += EVERY_MS
                system.erasers[index % workers].turn()
        for user in USERS[3:]:
            system.forget(user)
        system.begin_again(2)
        finish(system)
        assert sum(system.waiting) == 0
        events, archived, named = left(system)
        assert named == [] and [e.user_id for e in readable(system.log, CONTROL, Erasure)] == [""] * 5
        keys = {record.key for topic, _, record in events if topic != DEAD_LETTERS}
        keys |= {row[2] for rows in archived for row in rows}
        assert keys and not keys & {user.encode() for user in USERS}


def test_a_request_that_one_worker_has_read_further_than_others_is_there_once(tmp_path: Path) -> None:
    system = asked(tmp_path, USERS[:4])
    system.begin_again(3)
    system.forget(USERS[4])
    system.erasers[partition_of(USERS[4], PARTITIONS)].turn()
    system.begin_again()
    assert system.waiting == [5]


def test_a_snapshot_of_the_version_before_workers_is_read_by_each(tmp_path: Path) -> None:
    system = asked(tmp_path)
    waiting = [erasure.PendingErasure(user_id=user, offset=9, control=n) for n, user in enumerate(USERS, 1)]
    blob = msgspec.msgpack.encode(erasure._Packed(waiting))
    state = PartState(tmp_path, erasure.PART)
    state.save(system.log.id, {CONTROL: {0: system.log.end(CONTROL, 0)}}, blob)
    system.begin_again(3)
    assert all(system.waiting) and sum(system.waiting) == len(USERS)
    assert not (state.folder / "state.msgpack").exists()
    system.begin_again()
    assert system.waiting == [len(USERS)]


def test_a_deletion_waits_for_a_damaged_archive_file_and_names_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = toy_log()
    system = System(log, tmp_path)
    append_events(log, feed(60))
    system.turn()
    folder = tmp_path / "archive"
    (damaged,) = (f.path for f in files.files_of(folder, EXAMPLES) if f.partition == PARTITION)
    intact = damaged.read_bytes()
    flip_bit(damaged, 8 * (len(intact) - 200))
    system.forget()
    append_events(log, [Tick(time_ms=START_MS + 10_000_000)])
    for _ in range(3):
        system.turn()
        system.look()
    assert (system.eraser.waiting, system.eraser.done) == (1, 0)
    assert caplog.text.count("the deletion of 1 users waits") == 1 and str(damaged) in caplog.text
    assert not any(names(row[2]) or names(row[3]) for row in system.archived(EVENTS))
    damaged.write_bytes(intact)  # from a backup
    for _ in range(3):
        system.look()
    assert (system.eraser.waiting, system.eraser.done) == (0, 1)
    assert not any(names(row[2]) or names(row[3]) for row in system.archived(EXAMPLES))
    check_digest(damaged)
    assert damaged.read_bytes() != intact
