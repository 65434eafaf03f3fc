"""Step records that nothing needs go; the part that keeps a topic from shrinking is named."""

from types import SimpleNamespace

import numpy as np
import pytest
from msgspec.structs import replace

from parameter_server.storage.snapshots import complete_steps, write_part
from recsys.events.control_records import Live
from recsys.events.records import DELTAS, EVENTS, EXAMPLES, STEPS, Delta, Range, Step, pack, topics
from recsys.log.protocol import Append, MemoryLog
from recsys.log.sqlite_log import SqliteLog
from recsys.process.disk_budget import Level, Space
from recsys.process.log_holders import BACKUP, backup_lock, holders
from training.archive.writer import Archive
from training.candidates.space_keeper import SpaceKeeper, trim_deltas, trim_steps
from training.deletion.user_history import UserHistory

PER_STEP = 4  # examples of each partition


def snapshot(state, step, line="main", epoch=0):
    arrays = {"dense/values": np.zeros(3, np.float32)}
    write_part(state / "snapshots", line, epoch, step, 0, 1, arrays, {"step": step})


def record(step, epoch=0, line="main"):
    ranges = [Range(p, PER_STEP * (step - 1), PER_STEP * step) for p in range(2)]
    return Step(
        line=line, epoch=epoch, step=step, ranges=ranges, examples=8, lanes=1, time_ms=step, config="c"
    )


@pytest.fixture
def log():
    log = MemoryLog()
    for topic in topics(2):
        log.create(topic)
    return log


def learn(log, steps, archived=()):
    for step in range(1, steps + 1):
        examples = [Append(p, b"", b"x") for p in range(2) for _ in range(PER_STEP)]
        log.append(EXAMPLES, examples)
        log.append(STEPS, [Append(0, b"main", pack(record(step)))])


def first_step(log):
    begin = log.begin(STEPS, 0)
    return None if begin == log.end(STEPS, 0) else begin + 1


def test_records_go_up_to_the_oldest_snapshot_of_any_line(log, tmp_path):
    learn(log, 20)
    for partition in range(2):
        log.trim(EXAMPLES, partition, 20 * PER_STEP)
    trim_steps(log, tmp_path)
    assert first_step(log) == 1  # without a snapshot, a line may begin anew
    snapshot(tmp_path, 15)
    snapshot(tmp_path, 12, line="candidate")
    for name in ("lost+found", ".snapshot", "main copy"):
        (tmp_path / "snapshots" / name).mkdir()  # a disk's, a file server's or a person's
    trim_steps(log, tmp_path)
    assert first_step(log) == 12
    trim_steps(log, tmp_path)
    assert first_step(log) == 12


def test_records_stay_as_long_as_their_examples_are_on_the_log_or_in_the_archive(log, tmp_path):
    learn(log, 20)
    snapshot(tmp_path, 15)
    archive = Archive(log, tmp_path / "archive", lambda: 0)
    archive.turn()
    archive.flush()
    for partition in range(2):
        log.trim(EXAMPLES, partition, (7 - partition) * PER_STEP)
    trim_steps(log, tmp_path)
    assert first_step(log) == 1
    for file in (tmp_path / "archive" / EXAMPLES).rglob("*.parquet"):
        file.unlink()
    trim_steps(log, tmp_path)
    assert first_step(log) == 7  # partition 1 still has the examples from the seventh step on


def test_all_records_of_ten_busy_minutes_go_at_once(log, tmp_path):
    steps, learned = 30_000, [Range(0, 0, 1)]  # 50 a second
    log.append(EXAMPLES, [Append(0, b"", b"x")])
    log.trim(EXAMPLES, 0, 1)
    records = [replace(record(step), ranges=learned) for step in range(1, steps + 1)]
    log.append(STEPS, [Append(0, b"main", pack(each)) for each in records])
    snapshot(tmp_path, steps)
    trim_steps(log, tmp_path)
    assert first_step(log) == steps


def test_unreadable_records_between_them_go_too(log, tmp_path):
    learn(log, 3)
    log.append(STEPS, [Append(0, b"", b"\xc1")])
    log.append(STEPS, [Append(0, b"main", pack(record(4)))])
    log.append(STEPS, [Append(0, b"", b"\xc1")])
    for partition in range(2):
        log.trim(EXAMPLES, partition, 3 * PER_STEP)
    snapshot(tmp_path, 5)
    trim_steps(log, tmp_path)
    assert log.begin(STEPS, 0) == 3
    log.append(EXAMPLES, [Append(p, b"", b"x") for p in range(2) for _ in range(PER_STEP)])
    for partition in range(2):
        log.trim(EXAMPLES, partition, 4 * PER_STEP)
    trim_steps(log, tmp_path)
    assert log.begin(STEPS, 0) == 5


def test_after_trimming_unlearning_still_sees_that_a_user_may_have_been_learned_before(log, tmp_path):
    learn(log, 20)
    for partition in range(2):
        log.trim(EXAMPLES, partition, 20 * PER_STEP)
    snapshot(tmp_path, 15)
    trim_steps(log, tmp_path)
    lives = [Live(line="main", epoch=0)]
    history = UserHistory.read(log, "main", lives, {0: 0}, {})
    oldest = complete_steps(tmp_path / "snapshots", "main", 0)[0]
    assert history.first_step() <= oldest  # no snapshot is from before it: it can't be unlearned


def deltas(log, epoch, steps):
    for step in steps:
        for part in range(2):
            delta = Delta(line="main", epoch=epoch, step=step, base_step=step - 1, part=part, parts=2)
            log.append(DELTAS, [Append(0, b"", pack(delta))])


def test_deltas_go_up_to_a_snapshot(log):
    deltas(log, 0, range(1, 31))
    deltas(log, 1, range(21, 61))
    trim_deltas(log, "main", 1, 40)
    rest = [r.value for r in log.read(DELTAS, 0, log.begin(DELTAS, 0), 1000)]
    assert rest[0] in {pack(d) for d in map(delta_of, (39, 40))} and len(rest) in range(41, 45)
    trim_deltas(log, "main", 1, 10)  # nothing is that old
    assert log.end(DELTAS, 0) - log.begin(DELTAS, 0) == len(rest)


def delta_of(step):
    return Delta(line="main", epoch=1, step=step, base_step=step - 1, part=0, parts=2)


class Spaces:
    """What the space file says."""

    def __init__(self, **fields):
        self.space = Space(**fields)

    def read(self):
        return self.space


def keeper(log, tmp_path, **fields):
    made = SpaceKeeper(log, tmp_path, lambda: 1_000_000)
    made._space = Spaces(**fields)
    return made


def test_fewer_snapshots_stay_while_space_is_low_or_they_exceed_their_share(log, tmp_path):
    cases = [
        (3, {"snapshots": 100}),
        (2, {"snapshots": 10}),
        (2, {"snapshots": 100, "level": Level.LOWER}),
        (3, {"snapshots": 100, "level": Level.LOW}),
    ]
    for kept, fields in cases:
        made = keeper(log, tmp_path, kinds={"snapshots": 50}, **fields)
        assert made.snapshots_kept(3) == kept, fields
        assert made.snapshots_kept(1) == 1
    made._space = SimpleNamespace(read=lambda: None)
    assert made.snapshots_kept(3) == 3


def test_old_deltas_go_only_while_space_is_low(log, tmp_path):
    deltas(log, 0, range(1, 31))
    keeper(log, tmp_path, level=Level.LOW).turn("main", 0, [10, 20, 25])
    assert log.begin(DELTAS, 0) == 0
    keeper(log, tmp_path, level=Level.LOWER).turn("main", 0, [])
    assert log.begin(DELTAS, 0) == 0
    keeper(log, tmp_path, level=Level.LOWER).turn("main", 0, [10, 20, 25])
    assert 34 <= log.begin(DELTAS, 0) <= 38  # two a step, up to step 20


def test_retention_that_drops_deltas_meanwhile_does_no_harm(log, tmp_path, monkeypatch):
    deltas(log, 0, range(1, 31))
    read = log.read

    def dropped_meanwhile(topic, partition, offset, limit=1000):
        log.trim(DELTAS, 0, 50 if topic == DELTAS else 0)
        return read(topic, partition, offset, limit)

    monkeypatch.setattr(log, "read", dropped_meanwhile)
    keeper(log, tmp_path, level=Level.LOWER).turn("main", 0, [10, 20, 25])
    assert log.begin(DELTAS, 0) == 50


def test_whoever_holds_a_topic_beyond_its_share_is_named_once(log, tmp_path, caplog):
    log.append(EVENTS, [Append(p, b"", b"x") for p in range(2) for _ in range(5)])
    log.hold("joiner", EVENTS, 1, 0)
    log.hold("archive", EVENTS, 1, 3)
    log.hold("joiner", EVENTS, 0, 2)  # retention hasn't come to it
    made = keeper(log, tmp_path, over=[EVENTS])
    for _ in range(3):
        made.turn("main", 0, [])
    warned = [r.getMessage() for r in caplog.records]
    assert warned == ["topics have more than their share of the disk: joiner holds events/1"]


def test_the_age_of_a_hold_is_named_where_the_log_has_append_times(tmp_path):
    log = SqliteLog(tmp_path, clock=lambda: 0)
    for topic in topics(2):
        log.create(topic)
    log.append(EVENTS, [Append(1, b"", b"x")])
    log.hold("joiner", EVENTS, 1, 0)
    log.hold("joiner", EVENTS, 0, 0)  # nothing to drop
    assert holders(log, EVENTS, 41 * 3_600_000) == ["joiner holds events/1 since 41 h"]
    log.close()


def test_the_hold_of_a_backup_ends_with_its_process(log, tmp_path):
    learn(log, 5)
    for topic in (EXAMPLES, STEPS):
        log.hold(BACKUP, topic, 0, 0)
    log.hold("archive", EXAMPLES, 0, 4)
    now_ms = [0]
    keeper = SpaceKeeper(log, tmp_path, lambda: now_ms[0])
    with backup_lock(tmp_path):  # it runs
        keeper.turn("main", 0, [])
        assert log.holds(EXAMPLES, 0) == {BACKUP: 0, "archive": 4}
    now_ms[0] += 600_000
    keeper.turn("main", 0, [])
    assert log.holds(EXAMPLES, 0) == {"archive": 4} and not log.holds(STEPS, 0)
