"""Unlearning a user: the state of a line that never saw them, bit for bit, as the line's next epoch."""

import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import pyarrow.compute as pc
import pytest

from benchmarks.harness.archived_log import archive_log
from experiments.promotion.epoch_model import config_at, with_size
from experiments.promotion.lifecycle import Lifecycle
from parameter_server.rpc.parameter_client import fresh_shards
from parameter_server.storage import snapshots
from recsys.config.system_config import Config
from recsys.events.control_records import Candidate, Decision, Erasure, Live, ModelSize, Unlearning
from recsys.events.event_types import Event, User, encode
from recsys.events.hashing import partition_of
from recsys.events.records import CONTROL, DELTAS, EVENTS, EXAMPLES, STEPS, Step, pack, unpack
from recsys.features.feature_set import FeatureSet
from recsys.log.protocol import Append, Log, MemoryLog
from recsys.model.model import build_model
from recsys.process.part_snapshot import PartState
from tests.support.training.small_feed import (
    FEATURES,
    PARTITIONS,
    START_MS,
    append_events,
    feed,
    toy_config,
    toy_log,
)
from tests.support.training.unlearn_line import history_with_late_users, learn, never_seen
from training.archive.files import erase_rows
from training.archive.writer import archived_rows
from training.deletion.erasure import PART, Eraser, erase_records
from training.deletion.removal import remove_replaced
from training.deletion.unlearn import unlearn
from training.deletion.user_history import CantUnlearn
from training.lines.control import ControlReader, append_live_record, live_epoch
from training.lines.line import spec_of
from training.steps.drain import drain
from training.steps.lineage import starts_after
from training.steps.sequencer_loop import last_position
from training.steps.step_reader import StepReader

pytestmark = pytest.mark.steady

LATE = "u91"  # only in the newer part of the log
EARLY = "u3"
BOTH = "u2"  # before the oldest snapshot and after it


def config_of(folder: Path, shards: int = 2) -> Config:
    return toy_config(str(folder), shards=shards)


def history(config: Config) -> MemoryLog:
    return history_with_late_users(config, named)


def named(event: Event) -> Event:
    """Every user of the last requests but one is the late one."""
    if getattr(event, "user_id", EARLY) == EARLY:
        return event
    return msgspec.structs.replace(event, user_id=LATE)


def request(log: Log, user: str) -> int:
    tombstone = User(time_ms=START_MS + 20_000_000, user_id=user, removed=True)
    where = partition_of(user, PARTITIONS)
    (offset,) = log.append(EVENTS, [Append(where, user.encode(), encode(tombstone))])
    return offset


def test_the_digest_is_that_of_a_line_that_never_saw_the_user(tmp_path: Path) -> None:
    config = config_of(tmp_path / "a")
    log = history(config)
    before = request(log, LATE)
    drain(log, config, FEATURES)
    seen = learn(config, log)
    expected = learn(config_of(tmp_path / "b", shards=3), never_seen(log, LATE))
    done = unlearn(log, config, FEATURES, {LATE: before}, 5)
    assert done is not None and (done.epoch, done.digest) == (1, expected) and seen != expected
    assert 0 < done.base_step < done.step and done.examples > 10 and done.other_config == 0

    assert live_epoch(log) == 1
    [live] = [unpack(r.value, Live) for r in log.read(CONTROL, 0, 0)]
    assert (live.epoch, live.reason) == (1, "a user was unlearned")
    assert learn(config, log) == done.digest  # the epoch's shards begin from its snapshot
    partition = partition_of(LATE, PARTITIONS)
    assert log.keyed(EXAMPLES, partition, [LATE.encode()], 1 << 60) == []
    kept = snapshots.complete_steps(tmp_path / "a" / "snapshots", "main", 0)
    assert kept == [] or kept[-1] <= done.base_step
    assert log.begin(DELTAS, 0) == log.end(DELTAS, 0)
    assert not list((tmp_path / "a" / "parts" / "shards").glob("main-0-*"))


@pytest.mark.slow
def test_the_epoch_goes_on_with_the_steps_where_the_one_before_it_ended(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    log = history(config)
    before = request(log, LATE)
    drain(log, config, FEATURES)
    learn(config, log)
    done = unlearn(log, config, FEATURES, {LATE: before}, 5)
    assert done is not None
    assert {s.epoch for s in (unpack(r.value, Step) for r in log.read(STEPS, 0, 0, 10_000))} == {0}
    place = last_position(log, "main", 1, PARTITIONS)
    assert place.offsets == last_position(log, "main", 0, PARTITIONS).offsets
    append_events(log, feed(8, first=100_000))
    assert drain(log, config, FEATURES) > done.step
    first = last_step_record(log, 1, done.step + 1)
    assert [part.start for part in first.ranges] == [place.offsets[part.partition] for part in first.ranges]
    learn(config, log)


def last_step_record(log: Log, epoch: int, number: int) -> Step:
    step = StepReader(log, "main", epoch).record(number)
    assert step is not None
    return step


@pytest.mark.slow
def test_without_a_snapshot_from_before_it_goes_back_to_the_beginning(tmp_path: Path) -> None:
    config = config_of(tmp_path / "a")
    log = history(config)
    before = request(log, EARLY)
    drain(log, config, FEATURES)
    learn(config, log)
    expected = learn(config_of(tmp_path / "b"), never_seen(log, EARLY))
    snapshots.prune(tmp_path / "a" / "snapshots", "main", keep=1)
    done = unlearn(log, config, FEATURES, {EARLY: before}, 5)
    assert done is not None and (done.base_step, done.digest) == (0, expected)


@pytest.mark.slow
def test_a_second_user_is_unlearned_from_a_history_that_was_replaced(tmp_path: Path) -> None:
    config = config_of(tmp_path / "a")
    log = history(config)
    places = [request(log, LATE), request(log, EARLY)]
    drain(log, config, FEATURES)
    learn(config, log)
    unlearn(log, config, FEATURES, {LATE: places[0]}, 5)
    expected = learn(config_of(tmp_path / "b"), never_seen(never_seen(log, LATE), EARLY))
    done = unlearn(log, config, FEATURES, {EARLY: places[1]}, 6)
    assert done is not None and (done.epoch, done.digest) == (2, expected)
    assert done.base_step == 5  # what unlearning emptied keeps nobody from a snapshot before it
    assert learn(config, log) == expected


@pytest.mark.slow
@pytest.mark.parametrize("dies_at", ["steps", "snapshot", "pointer", "removal", "deltas", "examples", "end"])
def test_killed_anywhere_it_is_done_again(
    tmp_path: Path, dies_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path / "a")
    log = history(config)
    before = request(log, LATE)
    drain(log, config, FEATURES)
    learn(config, log)
    expected = learn(config_of(tmp_path / "b"), never_seen(log, LATE))
    where = {
        "steps": "training.deletion.unlearn.Replay.turn",
        "snapshot": "training.deletion.unlearn.snapshots.write_part",
        "pointer": "training.deletion.unlearn.append_live_record",
        "removal": "training.deletion.unlearn.remove_replaced",
        "deltas": "training.deletion.removal.changes_records",
        "examples": "training.deletion.removal.UnlearnedPlaces.note",
        "end": "training.deletion.unlearn.digest_of_shards",
    }

    def dies(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(where[dies_at], dies)
        unlearn(log, config, FEATURES, {LATE: before}, 5)
    assert live_epoch(log) == (0 if dies_at in ("steps", "snapshot", "pointer") else 1)
    done = unlearn(log, config, FEATURES, {LATE: before}, 6)
    if dies_at == "end":
        assert done is None and live_epoch(log) == 1
    else:
        assert done is not None and done.digest == expected
        assert done.epoch == live_epoch(log)
    assert log.keyed(EXAMPLES, partition_of(LATE, PARTITIONS), [LATE.encode()], 1 << 60) == []
    folder = tmp_path / "a" / "snapshots"
    assert max(snapshots.complete_steps(folder, "main", 0), default=0) <= 10
    left = {int(version.name[:6]) for version in (folder / "main").iterdir()}
    assert left <= {0, live_epoch(log)}
    assert not list((tmp_path / "a" / "parts" / "shards").glob("main-0-*"))
    assert log.begin(DELTAS, 0) == log.end(DELTAS, 0)
    assert learn(config, log) == expected


@pytest.mark.slow
@pytest.mark.parametrize("since", [5, 15])
def test_the_model_is_that_of_the_snapshot_that_it_begins_from(tmp_path: Path, since: int) -> None:
    """A student became live after step ``since``: the late user comes after it, or was there before."""
    config, student = config_of(tmp_path / "a"), ModelSize(2, (4,))
    log, folder = history(config), tmp_path / "a" / "snapshots"
    before = request(log, LATE)
    drain(log, config, FEATURES)
    learn(config, log, since)
    small = with_size(config, student)
    line = fresh_shards(spec_of(small), build_model(FEATURES, small.model).read_dense())
    for part, shard in enumerate(line):
        arrays, meta = shard.export()
        snapshots.write_part(folder, "main", 1, since, part, 2, arrays, meta | {"step": since})
    shutil.copytree(folder, tmp_path / "b" / "snapshots")
    append_live_record(log, "main", 1, "a student", 4, since, 0, student)
    drain(log, config, FEATURES)
    learn(small, log)

    done = unlearn(log, config, FEATURES, {LATE: before}, 5)
    assert done is not None and done.epoch == 2
    other = never_seen(log, LATE)
    if done.base_step >= since:
        assert (since, done.other_config) == (5, 0)
        append_live_record(other, "main", 1, "a student", 4, since, 0, student)
        expected = learn(replace(small, state=str(tmp_path / "b")), other)
    else:  # it was learned from before: the student is gone with it
        assert since == 15 and done.other_config == done.step - since
        expected = learn(config_of(tmp_path / "c"), other)
    assert done.digest == expected
    control = ControlReader(log)
    control.turn()
    assert control.lifecycle.size("main", 2) == (student if since == 5 else None)
    assert learn(config_at(config, control.lifecycle, "main", 2), log) == done.digest


@pytest.mark.slow
def test_a_user_of_whom_nothing_was_learned_costs_nothing(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    log = history(config)
    learn(config, log)
    steps = log.end(STEPS, 0)
    assert unlearn(log, config, FEATURES, {"nobody": 1 << 60}, 5) is None
    assert (log.end(STEPS, 0), live_epoch(log)) == (steps, 0)


@pytest.mark.slow
def test_what_is_gone_from_the_log_is_said_and_nothing_is_changed(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    log = history(config)
    before = request(log, EARLY)
    drain(log, config, FEATURES)
    learn(config, log)
    snapshots.prune(tmp_path / "snapshots", "main", keep=1)
    for partition in range(PARTITIONS):
        log.trim(EXAMPLES, partition, 2)
    steps = log.end(STEPS, 0)
    with pytest.raises(CantUnlearn, match="is of step 0, and the log no longer has .* --unlearn"):
        unlearn(log, config, FEATURES, {EARLY: before}, 5)
    assert (log.end(STEPS, 0), live_epoch(log)) == (steps, 0)


def learned_of(config: Config, user: str) -> tuple[MemoryLog, int, int]:
    """A log, learned to its end, on which a user asks to be forgotten; the offset of the request, and the
    step of the oldest snapshot that stands, but for the one at the beginning."""
    log = history(config)
    before = request(log, user)
    drain(log, config, FEATURES)
    learn(config, log)
    return log, before, snapshots.complete_steps(Path(config.state) / "snapshots", "main", 0)[1]


def trim_before(log: Log, step: int) -> None:
    for partition, start in starts_after(StepReader(log, "main", 0), step).items():
        log.trim(EXAMPLES, partition, start)


@pytest.mark.slow
def test_what_retention_dropped_may_have_been_the_users(tmp_path: Path) -> None:
    """The user has examples on the log, all of them after a snapshot; they had others before it."""
    config = config_of(tmp_path)
    log, before, oldest = learned_of(config, BOTH)
    seen = learn(config, log)
    trim_before(log, oldest)
    steps = log.end(STEPS, 0)
    with pytest.raises(CantUnlearn, match="sure to be from before .* is of step 0"):
        unlearn(log, config, FEATURES, {BOTH: before}, 5)
    assert (log.end(STEPS, 0), live_epoch(log), learn(config, log)) == (steps, 0, seen)


@pytest.mark.slow
def test_the_archive_knows_that_what_retention_dropped_was_others(tmp_path: Path) -> None:
    config = config_of(tmp_path / "a")
    log, before, oldest = learned_of(config, LATE)
    expected = learn(config_of(tmp_path / "b"), never_seen(log, LATE))
    archive_log(log, tmp_path / "a" / "archive")
    trim_before(log, oldest)
    partition = partition_of(LATE, PARTITIONS)
    assert log.begin(EXAMPLES, partition) > 0
    first = (pc.field("partition") == partition) & (pc.field("offset") == 0)
    [(other,)] = archived_rows(tmp_path / "a" / "archive", EXAMPLES, ["key"], first)
    shutil.copytree(tmp_path / "a" / "archive", tmp_path / "whole")
    archive = tmp_path / "a" / "archive"
    erase_rows(archive, EXAMPLES, partition, [other], lambda record: record.offset == 0)
    with pytest.raises(CantUnlearn, match="sure to be from before"):  # a row is missing: whose was it?
        unlearn(log, config, FEATURES, {LATE: before}, 5)
    shutil.rmtree(tmp_path / "a" / "archive")
    shutil.copytree(tmp_path / "whole", tmp_path / "a" / "archive")
    done = unlearn(log, config, FEATURES, {LATE: before}, 5)
    assert done is not None and done.base_step > 0 and done.digest == expected


@pytest.mark.slow
def test_what_was_erased_already_is_unlearned_as_well(tmp_path: Path) -> None:
    """Forgotten by a running system, which erased what lay before its oldest snapshot; then unlearned."""
    config = config_of(tmp_path / "a")
    log, before, oldest = learned_of(config, BOTH)
    expected = learn(config_of(tmp_path / "b"), never_seen(log, BOTH))
    partition = partition_of(BOTH, PARTITIONS)
    end = starts_after(StepReader(log, "main", 0), oldest)[partition]
    held = log.keyed(EXAMPLES, partition, [BOTH.encode()], 1 << 60)
    assert held[0] < end <= held[-1]
    for topic, offset in ((EVENTS, 0), (EXAMPLES, end)):
        for name in ("archive", "counters", "joiner", "session-fold", "snapshots/main"):
            log.hold(name, topic, partition, offset)
    log.append(CONTROL, [Append(0, b"", pack(Erasure(user_id=BOTH, offset=before)))])
    Eraser(log, tmp_path / "a" / "archive", PartState(config.state, PART), lambda: 0).turn()
    assert log.keyed(EXAMPLES, partition, [BOTH.encode()], 1 << 60)[0] >= end
    done = unlearn(log, config, FEATURES, {BOTH: before}, 5)
    assert done is not None and done.base_step < oldest and done.digest == expected


@pytest.mark.slow
def test_who_was_erased_wholly_is_unlearned_or_it_is_said_that_nobody_can_tell(tmp_path: Path) -> None:
    config = config_of(tmp_path / "a")
    log, before, oldest = learned_of(config, BOTH)
    expected = learn(config_of(tmp_path / "b"), never_seen(log, BOTH))
    erase_records(log, EXAMPLES, partition_of(BOTH, PARTITIONS), {BOTH.encode(): before}, 1 << 60)
    done = unlearn(log, config, FEATURES, {BOTH: before}, 5)
    assert done is not None and (done.examples, done.digest) == (0, expected)
    trim_before(log, oldest)
    with pytest.raises(CantUnlearn):
        unlearn(log, config, FEATURES, {BOTH: before}, 5)


@pytest.mark.slow
def test_rows_that_another_user_had_removed_do_not_come_back(tmp_path: Path) -> None:
    """A snapshot of a replaced epoch holds rows of a user whose removal isn't on the log any more."""
    config = config_of(tmp_path / "a")
    log = history(config)
    befores = {user: request(log, user) for user in (LATE, EARLY)}
    drain(log, config, FEATURES)
    learn(config, log)
    other = "late too"
    append_events(
        log,
        [
            msgspec.structs.replace(its, user_id=other) if hasattr(its, "user_id") else its
            for its in feed(8, first=100_000)
        ],
    )
    befores[other] = request(log, other)
    drain(log, config, FEATURES)
    learn(config, log)
    first = unlearn(log, config, FEATURES, {LATE: befores[LATE]}, 5)
    assert first is not None and first.base_step > 0
    expected = never_seen(never_seen(never_seen(log, LATE), EARLY), other)
    partition = partition_of(EARLY, PARTITIONS)
    erase_records(log, EXAMPLES, partition, {EARLY.encode(): befores[EARLY]}, 1 << 60)
    done = unlearn(log, config, FEATURES, {other: befores[other]}, 6)
    assert done is not None
    assert done.digest == learn(config_of(tmp_path / "b"), expected)


@pytest.mark.slow
def test_an_epoch_that_never_came_to_be_live_is_no_part_of_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path / "a")
    log, before, _ = learned_of(config, LATE)

    def dies(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("training.deletion.unlearn.append_live_record", dies)
        unlearn(log, config, FEATURES, {LATE: before}, 5)
    asked = {}
    for number, user in enumerate(("first", "second"), 1):
        events = [
            msgspec.structs.replace(its, user_id=user) if hasattr(its, "user_id") else its
            for its in feed(8, first=number * 100_000)
        ]
        append_events(log, events)
        drain(log, config, FEATURES)
        learn(config, log)
    for user in ("second", "first"):
        asked[user] = request(log, user)
        drain(log, config, FEATURES)
        learn(config, log)
        done = unlearn(log, config, FEATURES, {user: asked[user]}, 6)
        assert done is not None and done.examples > 10
    expected = never_seen(never_seen(log, "first"), "second")
    live = live_steps(expected, config)
    assert live == done.digest


def live_steps(log: Log, config: Config) -> str:
    """The digest of the newest epoch's steps and those before them, learned as one line's."""
    newest: dict[int, Step] = {}
    for record in log.read(STEPS, 0, 0, 100_000):
        step = unpack(record.value, Step)
        if step.epoch != 1:
            newest[step.step] = step
    again = toy_log()
    for partition in range(PARTITIONS):
        records = log.read(EXAMPLES, partition, 0, 100_000)
        again.append(EXAMPLES, [Append(partition, key, value) for _, key, value in records])
    for number in sorted(newest):
        step = msgspec.structs.replace(newest[number], epoch=0)
        again.append(STEPS, [Append(0, b"main", pack(step))])
    return learn(toy_config(config.state + ".again", shards=2), again)


@pytest.mark.slow
def test_what_cannot_be_learned_as_it_was_is_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    log, before, _ = learned_of(config, LATE)
    steps = log.end(STEPS, 0)
    lanes = replace(config, step=replace(config.step, lanes=2))
    wider = replace(config, model=replace(config.model, hidden=(16,)))
    features = FeatureSet(FEATURES.schema, "all", history=3)
    for its, says in ((lanes, "set it to 4"), (wider, "can't be loaded as the model is set now")):
        with pytest.raises(CantUnlearn, match=says):
            unlearn(log, its, FEATURES, {LATE: before}, 5)
    with pytest.raises(CantUnlearn, match="it can't be learned again with the features of today"):
        unlearn(log, config, features, {BOTH: 1 << 60}, 5)
    assert (log.end(STEPS, 0), live_epoch(log)) == (steps, 0)


@pytest.mark.slow
def test_a_replay_that_ends_in_the_middle_leaves_what_is_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path)
    log, before, _ = learned_of(config, LATE)
    seen = learn(config, log)

    def fails(*_: object) -> int:
        raise ValueError("no")

    with monkeypatch.context() as patch:
        patch.setattr("training.deletion.unlearn.Worker.turn", fails)
        with pytest.raises(CantUnlearn, match="replay of step .* ended: no. The model that is live"):
            unlearn(log, config, FEATURES, {LATE: before}, 5)
    assert (live_epoch(log), learn(config, log)) == (0, seen)


def test_what_a_retiring_shard_writes_later_is_removed_as_well(tmp_path: Path) -> None:
    lifecycle, folder = Lifecycle(), tmp_path / "snapshots"
    for epoch, step in ((0, 3), (0, 9), (1, 6), (2, 12), (3, 12), (4, 12), (5, 12)):
        snapshots.write_part(folder, "main", epoch, step, 0, 1, {}, {"step": step})
    wal = tmp_path / "parts" / "shards"
    wal.mkdir(parents=True)
    for name in ("main-0-0-of-1.wal", "main-2-0-of-1.wal"):
        (wal / name).touch()
    for record in (
        Live(line="main", epoch=0),
        Live(line="main", epoch=2, base_step=10),
        Candidate(line="c", registry=""),
        Decision(line="c", verdict="promote", to="all", epoch=4),
        Unlearning(id="b", state="replaying", epoch=5),
        Unlearning(id="a", state="done", epoch=2, first=5),
    ):
        assert remove_replaced(tmp_path, lifecycle) is None
        lifecycle.fold(record)
    assert snapshots.complete_steps(folder, "main", 0) == [3, 9]
    remove_replaced(tmp_path, lifecycle)
    left = {e: snapshots.complete_steps(folder, "main", e) for e in range(6)}
    # Epochs 1 and 3 never were live; 4 and 5 may become.
    assert left == {0: [3], 1: [], 2: [12], 3: [], 4: [12], 5: [12]}
    assert [file.name for file in wal.iterdir()] == ["main-2-0-of-1.wal"]
