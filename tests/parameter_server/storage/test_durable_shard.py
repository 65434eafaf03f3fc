"""A shard that crashes anywhere comes back bit for bit: crash points are inputs."""

import shutil
import threading
import time
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from safetensors import safe_open

from parameter_server.publish.deltas import DeltaAssembler, to_arrays
from parameter_server.publish.rounding import read_dense, round_dense
from parameter_server.rpc.parameter_client import LocalClient, part_of
from parameter_server.shard.lanes import LaneGradients, RowGradients
from parameter_server.shard.shard import Shard, digest_of_shards
from parameter_server.shard.wal_settings import WalSettingsChanged
from parameter_server.storage import durable_shard as durable
from parameter_server.storage import part_files, snapshots
from parameter_server.storage.durable_shard import DurableShard, ShardStorage
from parameter_server.table.dense import SENT
from recsys.config.system_config import TableConfig
from recsys.events.records import Delta
from tests.support.parameter_server.durable_line import ALL, PARTS, SPEC, STEPS, Line
from tests.support.parameter_server.small_line import DENSE, LANES, time_of, toy_spec, work
from tests.support.parameter_server.snapshot_rows import load_rows
from tests.support.simulation.bit_flips import flip_bit


def undisturbed():
    deltas = []
    client = LocalClient.fresh(SPEC, DENSE, deltas.append)
    work(client, ALL, STEPS)
    return digest_of_shards(client.shards), {(d.step, d.part): d for d in deltas}


DIGEST, DELTAS = undisturbed()
POINTS = ["before write", "torn write", "after write", "before publish", "after publish", "after step"]


def check(line):
    assert line.digest() == DIGEST
    assembler = DeltaAssembler("main", 0, 0)
    for value in line.published:
        delta = msgspec.msgpack.decode(value, type=Delta)
        assert delta == DELTAS[delta.step, delta.part]  # repeats are identical
        assembler.feed(value)
    assert assembler.step == STEPS


# The first and the last step, and those before and after a snapshot; slow: others, which differ in nothing.
@pytest.mark.parametrize(
    "step", [1, 10, 11, 25, *(pytest.param(step, marks=pytest.mark.slow) for step in (2, 12))]
)
@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("point", POINTS)
def test_a_crash_anywhere_changes_no_bit(tmp_path, point, part, step):
    line = Line(tmp_path, (point, part, step))
    work(line, ALL, STEPS)
    assert line.crashes == 1
    check(line)


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("point", ["before snapshot", "before truncation"])
def test_a_crash_around_a_snapshot_changes_no_bit(tmp_path, point, part):
    line = Line(tmp_path, (point, part, 10))
    work(line, ALL, STEPS)
    assert line.crashes == 1
    check(line)
    assert 10 in snapshots.complete_steps(tmp_path / "snapshots", "main", 0)


def test_only_what_is_in_doubt_is_published_again(tmp_path):
    line = Line(tmp_path)
    work(line, ALL, 8)
    line.crash(1)
    assert len(line.published) == 2 * 8 + 1 and line.published[-1] == line.published[-2]


@pytest.mark.slow
def test_a_crash_after_every_step_changes_no_bit(tmp_path):
    line = Line(tmp_path)

    def tick(step):
        line.crash(step % PARTS)

    work(line, ALL, STEPS, tick=tick)
    assert line.crashes == STEPS
    check(line)


def test_without_the_write_ahead_file_a_crash_would_be_seen(tmp_path):
    """The oracle can fail: a shard that lost its file isn't where the line is."""
    line = Line(tmp_path)
    work(line, ALL, 14)
    (tmp_path / "1.wal").unlink()
    line.crash(1)
    assert line.applied_steps() == [14, 10]
    for shard in line.shards:
        shard.rewind(shard.common_step())
    assert line.applied_steps() == [10, 10]
    work(line, ALL, STEPS)
    check(line)


def test_a_line_learns_again_what_was_in_a_damaged_file(tmp_path):
    line = Line(tmp_path)
    work(line, ALL, 17)
    file = tmp_path / "1.wal"
    flip_bit(file, 4 * file.stat().st_size)
    line.crash(1)
    assert line.applied_steps()[0] == 17 > line.applied_steps()[1] >= 10
    assert "damaged after step" in line.shards[1].status()["wal_damaged"]
    assert file.with_suffix(".wal.damaged").exists()
    for shard in line.shards:
        shard.rewind(shard.common_step())
    work(line, ALL, STEPS)
    check(line)


def test_the_file_reaches_back_to_an_intact_snapshot(tmp_path, monkeypatch):
    line = Line(tmp_path)
    work(line, ALL, 19)
    real = snapshots.write_part

    def damaged(*arguments):
        part = real(*arguments)
        flip_bit(part / "arrays.safetensors", 1000)

    monkeypatch.setattr(snapshots, "write_part", damaged)
    work(line, ALL, 24)
    monkeypatch.undo()
    assert [shard._wal.steps for shard in line.shards] == [(11, 24), (11, 24)]
    assert "000000-000000000020" in line.shards[1].status()["snapshots_damaged"]
    for part in range(PARTS):
        line.crash(part)
    assert line.applied_steps() == [24, 24] and not any(shard.lost for shard in line.shards)
    work(line, ALL, STEPS)
    check(line)


def test_the_file_is_cut_behind_complete_snapshots_and_old_snapshots_leave(tmp_path):
    line = Line(tmp_path)
    work(line, ALL, 24)
    # That of step 20 builds on that of 10, so the one before these stays too.
    assert snapshots.complete_steps(tmp_path / "snapshots", "main", 0) == [0, 10, 20]
    assert [shard._wal.steps for shard in line.shards] == [(11, 24), (21, 24)]
    work(line, ALL, 32)  # the first to write sees by and by that the others are done
    assert [shard._wal.steps for shard in line.shards] == [(31, 32), (31, 32)]
    status = line.shards[1].status()
    assert status["step"] == 32 and status["rows"]["features"] > 0 and status["unpublished"] == 0


def test_a_new_line_begins_with_a_snapshot_for_replicas(tmp_path):
    Line(tmp_path)
    snapshot, tables, dense = load_rows(tmp_path / "snapshots", "main")
    assert snapshot.step == 0 and (dense == DENSE.astype(np.float16)).all() and len(tables["items"][0]) == 0


def folded(deltas):
    """The rows that a replica holds after deltas, by table and key."""
    rows = {}
    for delta in deltas:
        for name, (keys, values, removed) in to_arrays(delta).items():
            there = rows.setdefault(name, {})
            there.update(zip(keys.tolist(), map(bytes, values), strict=True))
            for key in removed.tolist():
                there.pop(key, None)
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("step", [10, 17, 25])
def test_what_serving_loads_is_what_was_published(tmp_path, step):
    line = Line(tmp_path, snapshot_every=step)
    work(line, ALL, step)
    held = [sum(shard.shard.published.withheld.values()) for shard in line.shards]
    assert all(held) if step != 17 else not any(held)  # a step that settles leaves nothing
    _, tables, dense = load_rows(tmp_path / "snapshots", "main")
    there = folded(delta for (s, _), delta in DELTAS.items() if s <= step)
    for name, (keys, values) in tables.items():
        assert dict(zip(keys.tolist(), map(bytes, values), strict=True)) == there[name]
        assert len(keys) > 10
    averaged = line.shards[0].shard.dense.averaged
    assert (dense == averaged.astype(np.float16)).all()


@pytest.mark.slow
def test_a_restarted_shard_says_the_digest_that_it_had(tmp_path):
    line = Line(tmp_path)
    work(line, ALL, 14)
    before = [(s.shard.published.digest, s.shard.published.withheld, s.digest()) for s in line.shards]
    for part in range(PARTS):
        line.crash(part)
    after = [(s.shard.published.digest, s.shard.published.withheld, s.digest()) for s in line.shards]
    assert before == after and before[0][1]["features"] > 0


def test_snapshots_in_the_background_change_no_bit(tmp_path):
    line = Line(tmp_path, background=True, snapshot_every=3)
    work(line, ALL, STEPS)
    for shard in line.shards:
        shard.close()
        assert "no space" not in shard.snapshot_error
    again = Line(tmp_path)
    assert again.digest() == DIGEST


MANY = replace(SPEC, tables=(TableConfig("rows", 3, 0.1, ttl_s=100),), lanes=1, parts=1, delta_bytes=0)


def learn_keys(shard, keys, forget=()):
    """Learns a step of some keys, a second after the one before."""
    keys, step = np.array(keys, np.int64), shard.applied + 1
    rows = RowGradients(keys, np.full((len(keys), 3), step, np.float32), np.ones(len(keys), np.int32))
    gone = {"rows": np.array(forget, np.int64)}
    shard.learn(step, 1_000 * step, [LaneGradients(0, {"rows": rows}, forget=gone)])


def test_steps_do_not_wait_while_a_background_snapshot_is_read_again(tmp_path, monkeypatch):
    storage = ShardStorage(tmp_path / "snapshots", tmp_path / "wal", 1)
    shard = DurableShard(MANY, storage, lambda deltas: None, background=True)
    free, inner = [], part_files.sha256_of

    def probe():
        free.append(shard._lock.acquire(timeout=0.1))
        if free[-1]:
            shard._lock.release()

    def hashes(path):
        if threading.current_thread() is shard._writer:
            other = threading.Thread(target=probe)
            other.start()
            other.join()
        return inner(path)

    monkeypatch.setattr(part_files, "sha256_of", hashes)
    learn_keys(shard, [1, 2])
    shard._join_writer()
    assert free and all(free)
    shard.close()


def test_steps_do_not_wait_while_snapshots_of_siblings_are_read(tmp_path, monkeypatch):
    """The first shard finishes its part before the others: it reads theirs later, beside steps."""
    line = Line(tmp_path, snapshot_every=10, background=True)
    (first, *siblings), done = line.shards, threading.Event()
    for sibling in siblings:
        write = sibling._write
        monkeypatch.setattr(sibling, "_write", lambda *a, write=write: done.wait(10) and write(*a))
    work(line, ALL, 10)
    first._join_writer()
    assert first._untidy == 10
    done.set()
    for sibling in siblings:
        sibling._join_writer()
    reading, go, inner = threading.Event(), threading.Event(), snapshots.intact_steps

    def intact_steps(*place):
        reading.set()
        assert go.wait(10) or threading.current_thread() is not first._tidier
        return inner(*place)

    monkeypatch.setattr(snapshots, "intact_steps", intact_steps)
    work(line, ALL, 18)
    assert reading.is_set() and first.applied == 18 and first._untidy == 10
    go.set()
    first._join_writer()
    assert first._untidy is None and first._wal.steps == (11, 18)
    for shard in line.shards:
        shard.close()


def own_keys(folder, step):
    """Keys of a snapshot's own file, and of the rows that it removes."""
    with safe_open(next(folder.glob(f"*/*/*-{step:012d}/*/arrays.safetensors")), "numpy") as file:
        names = [name for name in ("keys", "removed") if f"table/rows/{name}" in file.keys()]
        return [sorted(file.get_tensor(f"table/rows/{name}").tolist()) for name in names]


def test_a_snapshot_holds_rows_that_changed_since_the_one_before(tmp_path, monkeypatch):
    storage = ShardStorage(tmp_path / "snapshots", tmp_path / "wal", 1, snapshots_kept=99)
    shard, digests = DurableShard(MANY, storage, lambda deltas: None), []
    for keys in (range(1_000), [0], [0]):  # at first an increment is as large
        learn_keys(shard, keys)
    read = []
    real = part_files.read_files
    monkeypatch.setattr(
        part_files, "read_files", lambda a, b, wanted: read.append(real(a, b, wanted)) or read[-1]
    )
    learn_keys(shard, range(1_000, 1_010))
    learn_keys(shard, [5], forget=[1_003, 7])
    learn_keys(shard, [7, 6])  # one comes back
    digests = [shard.digest()]
    shard.close()
    assert read and all(name.startswith("held/") for arrays in read for name in arrays)
    monkeypatch.undo()
    shard = DurableShard(MANY, storage, lambda deltas: None)  # it goes on from its snapshot
    learn_keys(shard, [8], forget=[9])
    digests.append(shard.digest())
    # Rows of the step before are named again: they have its event time.
    assert own_keys(tmp_path, 5) == [[5, *range(1_000, 1_003), *range(1_004, 1_010)], [7, 1_003]]
    assert own_keys(tmp_path, 6) == [[5, 6, 7], []]
    assert own_keys(tmp_path, 7) == [[6, 7, 8], [9]]
    for step, digest in zip((6, 7), digests, strict=True):
        again = Shard(MANY)
        durable.load_shard(again, snapshots.require(tmp_path / "snapshots", "main", step=step))
        assert again.digest() == digest


def test_after_a_snapshot_that_failed_all_rows_are_written(tmp_path, monkeypatch):
    storage = ShardStorage(tmp_path / "snapshots", tmp_path / "wal", 2, snapshots_kept=99)
    shard = DurableShard(MANY, storage, lambda deltas: None, background=True)
    for _ in range(4):
        learn_keys(shard, range(100))
        shard._join_writer()
    with monkeypatch.context() as broken:
        broken.setattr(snapshots, "save_file", lambda *_: 1 / 0)
        learn_keys(shard, [1], forget=[2])
        learn_keys(shard, [3])
        shard._join_writer()
    learn_keys(shard, [4])
    learn_keys(shard, [5])
    shard._join_writer()
    assert own_keys(tmp_path, 8) == [[0, 1, *range(3, 100)]]
    again = Shard(MANY)
    durable.load_shard(again, snapshots.require(tmp_path / "snapshots", "main"))
    assert (again.applied, again.digest()) == (8, shard.digest())


def test_a_snapshot_does_not_build_on_a_damaged_one(tmp_path):
    storage = ShardStorage(tmp_path / "snapshots", tmp_path / "wal", 1, snapshots_kept=99)
    shard = DurableShard(MANY, storage, lambda deltas: None)
    for keys in (range(100), [0], [0], [1]):
        learn_keys(shard, keys)
    assert own_keys(tmp_path, 4) == [[0, 1], []]
    flip_bit(next(tmp_path.glob("*/*/*-000000000003/*/arrays.safetensors")), 10_000)
    learn_keys(shard, [2])
    assert own_keys(tmp_path, 5) == [list(range(100))]
    assert snapshots.require(tmp_path / "snapshots", "main").step == 5


@pytest.mark.parametrize("crashes", [(), (3, 7, 12), range(1, 26)])
def test_snapshots_are_as_far_apart_as_their_time_says(tmp_path, crashes, monkeypatch):
    """Steps are 3 s apart: of each second step one is taken after 10 s, whenever a shard crashes."""
    monkeypatch.setattr(
        "tests.support.parameter_server.durable_line.SPEC", replace(SPEC, settle_every=2, settle_s=10)
    )
    line, taken, real = Line(tmp_path, snapshot_every=2), [], snapshots.write_part

    def write_part(folder, name, epoch, step, part, *arguments):
        taken.append((step, part))
        return real(folder, name, epoch, step, part, *arguments)

    monkeypatch.setattr(snapshots, "write_part", write_part)

    def tick(step):
        if step in crashes:
            line.crash(step % PARTS)

    work(line, ALL, STEPS, tick=tick)
    steps = [2, 6, 10, 14, 18, 22]
    assert sorted(taken) == [(step, part) for step in steps for part in range(PARTS)]
    again = Line(tmp_path, snapshot_every=2)
    assert again.shards[0].shard.settled_ms == time_of(22)
    undisturbed = LocalClient.fresh(line.spec, DENSE)
    work(undisturbed, ALL, STEPS)
    assert digest_of_shards(undisturbed.shards) == line.digest()
    withheld = [shard.published.withheld for shard in undisturbed.shards]
    assert [shard.shard.published.withheld for shard in line.shards] == withheld


def failing_once(call):
    """The function, whose first call raises OSError."""
    errors = [OSError("no space left")]

    def wrapped(*arguments):
        if errors:
            raise errors.pop()
        return call(*arguments)

    return wrapped


@pytest.mark.parametrize("start", [9, None], ids=["same step again", "next step"])
@pytest.mark.parametrize("fault", ["flush", "fsync"])
def test_a_snapshot_that_a_fault_interrupts_is_completed(tmp_path, monkeypatch, fault, start):
    line = Line(tmp_path)
    work(line, ALL, 9)
    if fault == "flush":
        line.shards[1]._publish = failing_once(line.shards[1]._publish)
    else:
        monkeypatch.setattr(part_files.os, "fsync", failing_once(part_files.os.fsync))
    with pytest.raises(OSError, match="no space left"):
        work(line, ALL, 10)
    assert snapshots.complete_steps(tmp_path / "snapshots", "main", 0) == [0]
    work(line, ALL, 11, start)
    assert snapshots.complete_steps(tmp_path / "snapshots", "main", 0) == [0, 10]
    assert not any(shard.snapshot_error for shard in line.shards)
    work(line, ALL, STEPS)
    check(line)


def test_a_snapshot_that_a_fault_interrupts_in_the_background_is_completed(tmp_path, monkeypatch):
    line = Line(tmp_path, background=True)
    work(line, ALL, 9)
    monkeypatch.setattr(part_files.os, "fsync", failing_once(part_files.os.fsync))
    work(line, ALL, 11)
    for shard in line.shards:
        shard._join_writer()
    assert snapshots.complete_steps(tmp_path / "snapshots", "main", 0) == [0, 10]
    assert not any(shard.snapshot_error for shard in line.shards)


def test_a_snapshot_that_fails_leaves_the_line_going(tmp_path, monkeypatch):
    line = Line(tmp_path, background=True, snapshot_every=10)

    def full(*arguments):
        raise OSError("no space left")

    with monkeypatch.context() as broken:
        broken.setattr(snapshots, "write_part", full)
        work(line, ALL, 12)
        for shard in line.shards:
            shard._join_writer()
    assert all("no space left" in shard.snapshot_error for shard in line.shards)
    line.crash(0)
    work(line, ALL, STEPS)
    assert line.digest() == DIGEST


def test_a_corrupt_snapshot_and_its_cut_file_need_a_rewind(tmp_path):
    line = Line(tmp_path)
    work(line, ALL, 24)
    weights = next((tmp_path / "snapshots" / "main").glob("*020/part-00001*/arrays.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    line.crash(1)
    assert "write-ahead file 21 to 24" in line.shards[1].lost and line.applied_steps() == [24, 10]
    common = line.shards[0].common_step()
    for shard in line.shards:
        shard.rewind(common)
        assert shard.status()["lost"] == ""
    work(line, ALL, STEPS)
    check(line)


def test_while_a_shard_rewinds_it_is_where_it_was(tmp_path, monkeypatch):
    line = Line(tmp_path)
    work(line, ALL, 24)
    shard, seen, real = line.shards[0], [], durable.load_shard

    def load(*arguments):
        seen.append(shard.applied)
        real(*arguments)
        seen.append(shard.applied)

    monkeypatch.setattr(durable, "load_shard", load)
    held = (tmp_path / "0.wal").read_bytes()
    with pytest.raises(snapshots.NoSnapshot, match="at 17"):
        shard.rewind(17)
    assert shard.applied == 24 and (tmp_path / "0.wal").read_bytes() == held
    shard.rewind(20)
    assert seen == [24, 24] and shard.applied == 20


def test_two_snapshots_at_once_have_one_writer(tmp_path, monkeypatch):
    line = Line(tmp_path, snapshot_every=100, background=True)
    work(line, ALL, 5)
    shard, begun, go = line.shards[0], [], threading.Event()

    def write(*_):
        begun.append(1)
        go.wait(5)

    class Thread(threading.Thread):
        def start(self):
            time.sleep(0.02)  # whoever doesn't wait for this sees no writer
            super().start()

    monkeypatch.setattr(shard, "_write", write)
    askers = [threading.Thread(target=shard.snapshot) for _ in range(3)]
    monkeypatch.setattr(durable.threading, "Thread", Thread)
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    go.set()
    shard._join_writer()
    assert begun == [1] and "still being written" in shard.snapshot_error


@pytest.mark.parametrize("parts", [1, 3])
def test_a_line_goes_on_with_another_number_of_shards(tmp_path, parts):
    line = Line(tmp_path, snapshot_every=10)
    work(line, ALL, 10)
    other = replace(SPEC, parts=parts)
    shards = []
    for part in range(parts):
        home = ShardStorage(tmp_path / "snapshots", tmp_path / f"other-{part}.wal")
        dense = DENSE if part == 0 else None
        shards.append(DurableShard(part_of(other, part), home, lambda deltas: None, dense))
    inner = [shard.shard for shard in shards]
    assert digest_of_shards(inner) == line.digest()
    theirs = [shard.shard.published for shard in line.shards]
    mine = [shard.published for shard in inner]
    assert sum(p.digest for p in mine) % 2**64 == sum(p.digest for p in theirs) % 2**64
    assert sum(p.withheld["features"] for p in mine) == sum(p.withheld["features"] for p in theirs) > 0
    work(LocalClient(inner), ALL, STEPS)
    assert digest_of_shards(inner) == DIGEST
    inserted = sum(shard.counters.inserted for shard in inner)
    work(line, ALL, STEPS)
    assert inserted == sum(shard.shard.counters.inserted for shard in line.shards)


def test_a_file_that_ends_before_the_snapshot_leaves_no_hole(tmp_path):
    """A power cut takes the file's unsynced tail, while the snapshot was synced."""
    line = Line(tmp_path)
    work(line, ALL, 8)
    early = (tmp_path / "1.wal").read_bytes()
    work(line, ALL, 10)
    line.shards[1]._wal.close()
    (tmp_path / "1.wal").write_bytes(early)
    line.shards[1] = line.open(1)
    assert line.applied_steps() == [10, 10]
    work(line, ALL, 14)
    line.crash(1)
    assert line.shards[1].lost == "" and line.applied_steps() == [14, 14]
    work(line, ALL, STEPS)
    check(line)


def learning(line, **changes):
    """The line, started again by other settings."""
    tables = changes.pop("tables", None) or SPEC.tables
    for shard in line.shards:
        shard.close()
    line.spec = replace(SPEC, tables=tables, **changes)
    line.shards = [line.open(part) for part in range(PARTS)]


SLOWER = (replace(SPEC.tables[0], learning_rate=0.01), SPEC.tables[1])


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"dense_rate": 0.5}, "dense_rate was 0.001, is 0.5"),
        ({"tables": SLOWER}, "tables.features.learning_rate was 0.1, is 0.01"),
        ({"tables": SPEC.tables[1:]}, "tables.features.ttl_s was 20, is not there"),
    ],
)
def test_steps_are_never_replayed_by_other_settings(tmp_path, changes, said):
    line = Line(tmp_path)
    work(line, ALL, 24)
    before = (tmp_path / "0.wal").read_bytes()
    with pytest.raises(WalSettingsChanged, match=f"steps 21 to 24.*{said}.*recsys down"):
        learning(line, **changes)
    assert (tmp_path / "0.wal").read_bytes() == before
    learning(line)  # by those of before, all goes on
    work(line, ALL, STEPS)
    check(line)


def test_after_a_clean_stop_settings_may_change(tmp_path):
    line = Line(tmp_path)
    work(line, ALL, 24)
    for shard in line.shards:
        shard.stop()
    assert snapshots.latest(tmp_path / "snapshots", "main").snapshot.step == 24
    learning(line, tables=SLOWER)
    work(line, ALL, 27)
    digest = line.digest()
    for part in range(PARTS):  # and the steps after it are replayed by the new ones
        line.crash(part)
    assert line.digest() == digest
    with pytest.raises(WalSettingsChanged, match="steps 25 to 27.*learning_rate was 0.01, is 0.1"):
        learning(line)


def test_how_deltas_are_sent_may_change_at_any_time(tmp_path):
    line = Line(tmp_path)
    work(line, ALL, 24)
    learning(line, delta_bytes=0, delta_format="int8", settle_every=5, digest_every=2)
    assert line.applied_steps() == [24, 24]
    work(line, ALL, STEPS)
    assert line.digest() == DIGEST


def test_a_clean_stop_takes_a_snapshot_only_of_what_is_new_and_was_published(tmp_path):
    line = Line(tmp_path)
    work(line, ALL, 20)
    files = {p: p.stat().st_mtime_ns for p in manifests(tmp_path)}
    for shard in line.shards:
        shard.stop()
    assert {p: p.stat().st_mtime_ns for p in manifests(tmp_path)} == files
    learning(line)
    work(line, ALL, 21)

    def away(deltas):
        raise OSError("the log is away")

    line.shards[1]._publish = away
    with pytest.raises(OSError):
        work(line, ALL, 22)
    for shard in line.shards:
        shard.stop()
    assert "log is away" in line.shards[1].snapshot_error
    learning(line)
    work(line, ALL, STEPS)
    check(line)


def test_a_stop_between_two_sends_of_dense_parameters_keeps_those_that_replicas_have(tmp_path):
    """Steps are 3 s apart, and a send is due after 9 s."""
    line, behind, increments = Line(tmp_path, snapshot_every=99), [], []
    for step in range(1, 15):
        learning(line, dense_every_ms=9_000)
        work(line, ALL, step)
        if step % 4 == 0:
            line.crash(0)
        newest = round_dense(line.shards[0].shard.dense.averaged, "fp16")[1]
        for shard in line.shards:
            shard.stop()
        rows = load_rows(tmp_path / "snapshots", "main")
        assert rows.snapshot.step == step
        deltas = (msgspec.msgpack.decode(value, type=Delta) for value in line.published)
        sent = {delta.step: delta.dense for delta in deltas if delta.dense}
        assert np.array_equal(rows.dense, read_dense(sent[max(sent)], "fp16"))
        assert (SENT in rows.snapshot.read(0)) == (not np.array_equal(rows.dense, newest))
        assert SENT not in rows.snapshot.read(1)
        behind += [step] if SENT in rows.snapshot.read(0) else []
        increments += [step] if len(rows.snapshot.files(0)) > 1 else []
    assert sorted(sent) == [1, 4, 7, 10, 13]
    assert behind == [2, 3, 5, 6, 8, 9, 11, 12, 14]
    assert {11, 13} <= set(increments)  # they bring it and leave it out
    again = Shard(replace(line.spec, parts=3), DENSE)  # of another number of shards
    durable.load_shard(again, rows.snapshot)
    assert np.array_equal(again.export()[0][SENT], rows.dense)
    learning(line)
    work(line, ALL, STEPS)
    assert line.digest() == DIGEST


def manifests(folder):
    return list((folder / "snapshots" / "main").glob("*/part-*/manifest.json"))


def test_what_was_held_back_may_be_missing_in_a_snapshot():
    client = LocalClient.fresh(replace(SPEC, delta_bytes=0), DENSE)
    work(client, ALL, 5)
    for shard in client.shards:
        arrays, meta = shard.export()
        again = Shard(shard.spec, DENSE if shard.dense is not None else None)
        again.load([{k: v for k, v in arrays.items() if not k.startswith("held/")}], meta)
        assert again.digest() == shard.digest() and again.published.digest == shard.published.digest


@pytest.mark.parametrize("dense", [DENSE[:1], DENSE[:-1], DENSE.astype(np.float64), DENSE[None]])
def test_a_dense_gradient_that_does_not_fit_is_never_written_down(tmp_path, dense):
    line = Line(tmp_path)
    work(line, ALL, 3)
    shard = line.shards[0]
    lanes = [LaneGradients(lane, dense=dense if lane == 1 else DENSE) for lane in ALL]
    size, digest = shard._wal.nbytes, shard.digest()
    with pytest.raises(ValueError, match=r"lane 1: the dense gradient is .*, expected float32 \(7,\)"):
        shard.learn(4, 4, lanes)
    assert (shard._wal.nbytes, shard.digest()) == (size, digest)
    line.crash(0)
    work(line, ALL, STEPS)
    check(line)


@pytest.mark.parametrize("harm", ["manifest", "incomplete"])
def test_where_no_snapshot_can_be_used_a_shard_refuses_to_begin_anew(tmp_path, harm):
    line = Line(tmp_path)
    work(line, ALL, 24)
    for path in manifests(tmp_path):
        if harm == "manifest":
            path.write_text("{}")
        elif "part-00001" in str(path):
            shutil.rmtree(path.parent)
    before = (tmp_path / "0.wal").read_bytes()
    line.shards[0]._wal.close()
    said = "passed over: 000000-000000000020.*doesn't begin at step 0.*move .*0.wal .*away"
    with pytest.raises(snapshots.NoSnapshot, match=said):
        line.open(0)
    assert (tmp_path / "0.wal").read_bytes() == before


def test_a_file_that_holds_all_needs_no_snapshot(tmp_path):
    line = Line(tmp_path, snapshot_every=100)
    work(line, ALL, 8)
    shutil.rmtree(tmp_path / "snapshots")
    line.crash(0)
    line.crash(1)
    assert line.applied_steps() == [8, 8]
    work(line, ALL, STEPS)
    check(line)


def test_a_closed_shard_publishes_nothing_more(tmp_path):
    """Whoever has closed it closes the log: a thread that answered may come to publishing only then."""
    begun, free, published = threading.Event(), threading.Event(), []

    def publish(deltas):
        begun.set()
        assert free.wait(20)
        published.extend(deltas)

    home = ShardStorage(tmp_path / "snapshots", tmp_path / "0.wal")
    shard = DurableShard(part_of(toy_spec(1), 0), home, publish, DENSE)
    idle = [LaneGradients(lane) for lane in range(LANES)]
    shard.learn(1, 0, idle, publish=False)
    publishing = threading.Thread(target=shard.flush)
    publishing.start()
    assert begun.wait(20)
    closing = threading.Thread(target=shard.close)
    closing.start()
    closing.join(0.05)
    assert closing.is_alive(), "it is closed while it publishes"
    free.set()
    closing.join(20)
    assert len(published) == 1
    again = DurableShard(part_of(toy_spec(1), 0), home, published.extend, DENSE)
    again.learn(2, 0, idle, publish=False)
    again.close()
    again.flush()
    assert [msgspec.msgpack.decode(delta)["step"] for delta in published] == [1, 1]
