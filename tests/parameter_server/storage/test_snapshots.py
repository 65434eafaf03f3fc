import contextlib
import errno
import json
import shutil

import numpy as np
import pytest

from parameter_server.storage import part_files, snapshots
from parameter_server.storage.mmap_shard import map_arrays
from parameter_server.storage.part_files import ARRAYS, Joined
from parameter_server.storage.snapshots import NoSnapshot, adopt, complete_steps, latest, prune, write_part
from tests.support.parameter_server.snapshot_rows import load_rows
from tests.support.simulation.bit_flips import flip_bit, with_flips
from tests.support.simulation.simulator import check_snapshots


def arrays(step, part):
    return {
        "table/items/keys": np.array([10 * step + part], np.int64),
        "table/items/values": np.full((1, 2), step, np.float32),
        "table/items/accumulator": np.ones(1, np.float32),
        "table/users/keys": np.empty(0, np.int64),
        "table/users/values": np.empty((0, 3), np.float32),
    } | ({"dense/averaged": np.full(4, step, np.float32)} if part == 0 else {})


def write(folder, step, part, parts=2, epoch=0):
    meta = {"step": step, "time_ms": 5 * step}
    return write_part(folder, "main", epoch, step, part, parts, arrays(step, part), meta)


def write_all(folder, *steps, **more):
    for step in steps:
        for part in (0, 1):
            write(folder, step, part, **more)


def test_a_snapshot_is_what_was_written(tmp_path):
    write_all(tmp_path, 5)
    snapshot, reasons = latest(tmp_path, "main")
    assert (snapshot.epoch, snapshot.step, snapshot.parts, reasons) == (0, 5, 2, [])
    assert snapshot.meta(1) == {"step": 5, "time_ms": 25}
    for part in (0, 1):
        for name, array in arrays(5, part).items():
            read = snapshot.read(part)[name]
            assert (read == array).all() and read.dtype == array.dtype and read.shape == array.shape
    assert set(snapshot.read(0, lambda name: name.startswith("dense/"))) == {"dense/averaged"}


def test_serving_reads_rows_and_no_optimizer(tmp_path):
    write_all(tmp_path, 5)
    snapshot, tables, dense = load_rows(tmp_path, "main")
    assert snapshot.step == 5 and (dense == 5).all()
    keys, values = tables["items"]
    assert keys.tolist() == [50, 51] and values.shape == (2, 2)
    assert tables["users"][1].shape == (0, 3)


def test_what_lacks_a_part_is_passed_over_and_said(tmp_path):
    write_all(tmp_path, 5)
    write(tmp_path, 6, 1)
    snapshot, reasons = latest(tmp_path, "main")
    assert snapshot.step == 5 and reasons == ["000000-000000000006: incomplete, parts [0] of 2 are missing"]
    write(tmp_path, 6, 0)
    assert latest(tmp_path, "main").snapshot.step == 6


@pytest.mark.parametrize("harm", ["flip", "cut", "no manifest", "rubbish", "wrong step", "no arrays"])
def test_what_is_corrupt_is_passed_over_and_said(tmp_path, harm):
    write_all(tmp_path, 5, 6)
    part = tmp_path / "main" / "000000-000000000006" / "part-00001-of-00002"
    weights, manifest = part / "arrays.safetensors", part / "manifest.json"
    data = weights.read_bytes()
    if harm == "flip":
        weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif harm == "cut":
        weights.write_bytes(data[:-9])
    elif harm == "no manifest":
        manifest.unlink()
    elif harm == "rubbish":
        manifest.write_text("{")
    elif harm == "wrong step":
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"step": 7}))
    else:
        weights.unlink()
    snapshot, reasons = latest(tmp_path, "main")
    assert snapshot.step == 5 and len(reasons) == 1 and "000000000006" in reasons[0]


def test_a_part_that_was_not_finished_is_no_part(tmp_path):
    write_all(tmp_path, 5)
    version = tmp_path / "main" / "000000-000000000006"
    shutil.copytree(tmp_path / "main" / "000000-000000000005", version)
    (version / "part-00001-of-00002").rename(version / ".1-abc")
    assert latest(tmp_path, "main").snapshot.step == 5
    assert complete_steps(tmp_path, "main", 0) == [5]


@pytest.mark.parametrize("how", ["write_part", "adopt"])
@pytest.mark.parametrize("killed", [False, True])
def test_a_part_that_fails_leaves_no_bytes_on_a_full_disk(tmp_path, monkeypatch, how, killed):
    write_all(tmp_path, 5)

    def act():
        if how == "write_part":
            write(tmp_path, 6, 1)
        else:
            adopt(tmp_path, "main", (0, 5), 1)

    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as failing:
        failing.setattr(snapshots.part_files, "sync_file", full)
        if killed:
            failing.setattr(snapshots.shutil, "rmtree", lambda *_, **more: None)
        with pytest.raises(OSError, match="No space"):
            act()
    assert len([*tmp_path.rglob(".*")]) == killed
    act()
    assert not [*tmp_path.rglob(".*")]


def test_an_adoption_that_was_killed_between_two_parts_goes_on(tmp_path, monkeypatch):
    write_all(tmp_path, 5)
    synced = []

    def killed(path):
        synced.append(path)
        if len(synced) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as failing:
        failing.setattr(snapshots.part_files, "sync_file", killed)
        with pytest.raises(KeyboardInterrupt):
            adopt(tmp_path, "main", (0, 5), 1)
    assert complete_steps(tmp_path, "main", 1) == []
    adopt(tmp_path, "main", (0, 5), 1)
    assert complete_steps(tmp_path, "main", 1) == [5]


def test_a_part_can_be_written_again(tmp_path):
    write_all(tmp_path, 5)
    write(tmp_path, 5, 1)
    assert latest(tmp_path, "main").snapshot.step == 5
    names = {path.name for path in (tmp_path / "main" / "000000-000000000005").iterdir()}
    assert names == {"part-00000-of-00002", "part-00001-of-00002"}


def test_the_newest_is_of_the_highest_epoch_or_of_the_one_asked_for(tmp_path):
    write_all(tmp_path, 900)
    write_all(tmp_path, 20, epoch=1)
    assert latest(tmp_path, "main").snapshot.step == 20
    assert latest(tmp_path, "main", epoch=0).snapshot.step == 900
    assert latest(tmp_path, "main", step=900).snapshot.epoch == 0
    assert latest(tmp_path, "main", epoch=0, step=20).snapshot is None


def test_pruning_keeps_the_newest_complete_ones_and_what_is_being_written(tmp_path, monkeypatch):
    monkeypatch.setattr(part_files, "FULL_EVERY", 1)  # no two build on one file
    write_all(tmp_path, 1, 2, 4, 5)
    write(tmp_path, 3, 0)
    write(tmp_path, 6, 0)
    removed = prune(tmp_path, "main", 2)
    assert removed == [f"000000-{step:012d}" for step in (1, 2, 3)]
    assert complete_steps(tmp_path, "main", 0) == [4, 5]
    assert (tmp_path / "main" / "000000-000000000006").exists()
    assert prune(tmp_path, "main", 2) == []
    with pytest.raises(ValueError, match="keep is 0"):
        prune(tmp_path, "main", 0)


@pytest.mark.parametrize("give_up", ["prune", "remove"])
def test_a_kill_amid_the_removal_leaves_no_snapshot_in_part(tmp_path, monkeypatch, give_up):
    ask = {"prune": lambda: prune(tmp_path, "main", 1), "remove": lambda: snapshots.remove(tmp_path, "main")}[
        give_up
    ]

    class Killed(Exception):
        pass

    def killed_after_one_file(folder, **_):
        next(path for path in sorted(folder.rglob("*")) if path.is_file()).unlink()
        raise Killed

    for step in range(1, 5):
        write_rows(tmp_path, step)
    with monkeypatch.context() as broken, pytest.raises(Killed):
        broken.setattr(snapshots.shutil, "rmtree", killed_after_one_file)
        ask()
    check_snapshots(tmp_path)
    ask()  # and what the kill left goes with the next
    left = [path.name for path in tmp_path.glob("*/*")]
    assert left == ([f"000000-{4:012d}"] if give_up == "prune" else [])


def test_another_number_of_shards_at_the_same_step_is_its_own_snapshot(tmp_path):
    write_all(tmp_path, 5)
    write(tmp_path, 5, 0, parts=3)
    assert latest(tmp_path, "main").snapshot.parts == 2
    write(tmp_path, 5, 1, parts=3)
    write(tmp_path, 5, 2, parts=3)
    assert latest(tmp_path, "main").snapshot.parts == 3


def test_nothing_there_is_said(tmp_path):
    assert latest(tmp_path, "main").snapshot is None
    write(tmp_path, 3, 0)
    with pytest.raises(NoSnapshot, match="passed over: 000000-000000000003: incomplete"):
        load_rows(tmp_path, "main")


def test_a_line_is_no_path(tmp_path):
    with pytest.raises(ValueError, match="line is '../x'"):
        write_part(tmp_path, "../x", 0, 1, 0, 1, {}, {})


# --- increments ---


def rows(step, count=2_000):
    """Of many rows a few change in a step, one leaves and one comes."""
    keys = np.arange(step, count + step, dtype=np.int64)
    values = np.repeat(keys[:, None], 8, 1).astype(np.float32)
    values[: 3 * step] += step
    return {
        "table/items/keys": keys,
        "table/items/values": values,
        "table/items/accumulator": keys.astype(np.float32),
        "table/items/used_ms": keys * step,
        "dense/averaged": np.full(4, step, np.float32),
    } | ({"table/items/used_ms": np.where(keys < 3 * step, step, 0)})


def changed(before, after):
    """Rows of an export that differ from one before, keys that it lacks, and all that aren't rows."""
    old, new = (export["table/items/keys"] for export in (before, after))
    differs = ~np.isin(new, old)
    both = np.flatnonzero(~differs)
    for name in after:
        if name.startswith("table/"):
            change = after[name][both] != before[name][np.searchsorted(old, new[both])]
            differs[both] |= change.reshape(len(both), -1).any(axis=1)
    out = {n: a[differs] if n.startswith("table/") else a for n, a in after.items()}
    return out | {"table/items/removed": np.setdiff1d(old, new)}


def write_on(folder, step, before, after):
    """Writes an export as an increment on the snapshot of the step before, where possible."""
    base = next(folder.glob(f"main/*-{step - 1:012d}/part-00000-of-00001"), None)
    update = base and part_files.increment(base, changed(before, after))
    write_part(folder, "main", 0, step, 0, 1, update or after, {"step": step})


def write_rows(folder, *steps):
    for step in steps:
        write_on(folder, step, rows(step - 1), rows(step))


def same(read, step):
    order = np.argsort(read["table/items/keys"])
    return all(
        np.array_equal(read[name][order] if name.startswith("table/") else read[name], array)
        for name, array in rows(step).items()
    ) and set(read) == set(rows(step))


def files(folder, step):
    return sorted((folder / "main" / f"000000-{step:012d}").glob("part-*/*.safetensors"))


@pytest.fixture
def eighth_is_full(monkeypatch):
    monkeypatch.setattr(part_files, "FULL_EVERY", 8)


@pytest.mark.usefixtures("eighth_is_full")
def test_a_snapshot_holds_what_changed_and_reads_as_the_whole(tmp_path):
    write_rows(tmp_path, *range(1, 12))
    for step in range(1, 12):
        assert same(latest(tmp_path, "main", step=step).snapshot.read(0), step)
    counts = [len(files(tmp_path, step)) for step in range(1, 12)]
    assert counts == [1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3]
    own = [f.stat().st_size for s in (1, 2) for f in files(tmp_path, s) if f.name[0] == "a"]
    assert own[1] < own[0] / 20
    nodes = {file.stat().st_ino for step in range(1, 9) for file in files(tmp_path, step)}
    assert len(nodes) == 8  # no byte is kept twice
    _, tables, dense = load_rows(tmp_path, "main")
    keys, values = tables["items"]
    assert (values[np.argsort(keys)] == rows(11)["table/items/values"]).all() and (dense == 11).all()


def test_a_full_one_is_written_where_increments_would_not_pay(tmp_path):
    everything = rows(1)
    for step in (1, 2, 3):
        before, values = everything, everything["table/items/values"] + 1
        everything = everything | {"table/items/values": values}
        write_on(tmp_path, step, before, everything)
    assert [len(files(tmp_path, step)) for step in (1, 2, 3)] == [1, 2, 1]


def test_removing_what_it_builds_on_harms_no_snapshot(tmp_path):
    write_rows(tmp_path, *range(1, 7))
    prune(tmp_path, "main", 1)
    assert complete_steps(tmp_path, "main", 0) == [6]
    assert same(latest(tmp_path, "main").snapshot.read(0), 6)


@pytest.mark.usefixtures("eighth_is_full")
def test_a_bad_link_costs_the_snapshots_on_it_and_a_spare_one_is_kept(tmp_path):
    for step in range(1, 13):
        write_rows(tmp_path, step)
        prune(tmp_path, "main", 2)
    assert complete_steps(tmp_path, "main", 0) == [8, 11, 12]  # 9 is full, 8 is of the chain before
    full = files(tmp_path, 12)[1]
    assert full.name == "chain-0.safetensors"
    data = full.read_bytes()
    full.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    snapshot, reasons = latest(tmp_path, "main")
    assert snapshot.step == 8 and same(snapshot.read(0), 8)
    assert len(reasons) == 2 and all("chain-0.safetensors is corrupt" in told for told in reasons)
    write_rows(tmp_path, 13)  # it doesn't build on what is bad
    assert [file.name for file in files(tmp_path, 13)] == ["arrays.safetensors"]


def test_where_files_cannot_be_linked_they_are_copied(tmp_path, monkeypatch):
    def refuses(*_):
        raise OSError("no links here")

    monkeypatch.setattr(part_files.os, "link", refuses)
    write_rows(tmp_path, 1, 2)
    assert [len(files(tmp_path, step)) for step in (1, 2)] == [1, 2]
    assert len({file.stat().st_ino for step in (1, 2) for file in files(tmp_path, step)}) == 3
    assert same(latest(tmp_path, "main").snapshot.read(0), 2)


# --- damage ---


def version(folder, step):
    return folder / "main" / f"000000-{step:012d}"


def flip(file, back=3):
    flip_bit(file, 8 * (file.stat().st_size - back))


def unseen(folder, file, count, seed):
    """Flips after which the snapshot loads with other contents."""
    expected = loaded(folder)
    wrong = [bit for bit in with_flips(file, count, seed) if loaded(folder) not in (None, expected)]
    assert loaded(folder) == expected
    return wrong


def loaded(folder):
    snapshot = latest(folder, "main").snapshot
    if snapshot is None:
        return None
    arrays = {name: array.tobytes() for name, array in snapshot.read(0).items()}
    return snapshot.step, snapshot.meta(0), snapshot.manifests, arrays


@pytest.mark.slow
@pytest.mark.parametrize("name", ["manifest.json", "arrays.safetensors", "chain-0.safetensors"])
def test_no_flip_in_a_snapshot_goes_unseen(tmp_path, name):
    for step in (5, 6):
        write_on(tmp_path, step, rows(step - 1, 200), rows(step, 200))
    shutil.rmtree(version(tmp_path, 5))
    part = version(tmp_path, 6) / "part-00000-of-00001"
    assert unseen(tmp_path, part / name, 1_000, seed=4) == []


@pytest.mark.slow
def test_no_flip_of_any_bit_of_a_small_manifest_goes_unseen(tmp_path):
    write_part(tmp_path, "main", 0, 5, 0, 1, {"a": np.ones(1)}, {"step": 5})
    part = version(tmp_path, 5) / "part-00000-of-00001"
    expected = part_files.read_manifest(part)
    file = part / "manifest.json"
    text = file.read_bytes()
    for bit in range(8 * len(text)):
        flip_bit(file, bit, text)
        with contextlib.suppress(ValueError):
            assert part_files.read_manifest(part) == expected, bit


@pytest.mark.parametrize("gone", [("version", "digest"), ("version", "digest", "chain")])
def test_a_manifest_of_an_earlier_version_is_refused(tmp_path, gone):
    write_all(tmp_path, 5)
    path = version(tmp_path, 5) / "part-00001-of-00002" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({name: x for name, x in manifest.items() if name not in gone}))
    found = latest(tmp_path, "main")
    assert found.snapshot is None
    assert "expected a digest among them" in found.reasons[0]
    assert "start with a new state folder" in found.reasons[0]


def test_a_damaged_snapshot_counts_as_none_of_those_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(part_files, "FULL_EVERY", 1)
    write_all(tmp_path, 1, 2, 3, 4)
    flip(version(tmp_path, 4) / "part-00001-of-00002" / "arrays.safetensors")
    assert prune(tmp_path, "main", 2) == [version(tmp_path, 1).name]
    assert snapshots.intact_steps(tmp_path, "main", 0) == [2, 3]
    assert complete_steps(tmp_path, "main", 0) == [2, 3]  # what is known is left out
    assert list(snapshots.damaged(tmp_path, "main")) == [version(tmp_path, 4).name]
    write_all(tmp_path, 5, 6)
    assert len(prune(tmp_path, "main", 2)) == 3  # the damaged one goes with the older ones
    assert snapshots.damaged(tmp_path, "main") == {}


def test_a_repaired_snapshot_counts_again(tmp_path):
    write_all(tmp_path, 1, 2)
    file = version(tmp_path, 2) / "part-00000-of-00002" / "manifest.json"
    text = file.read_text()
    file.write_text(text.replace('"step": 2', '"step": 3'))
    assert snapshots.intact_steps(tmp_path, "main", 0) == [1]
    file.write_text(text)
    assert complete_steps(tmp_path, "main", 0) == [1, 2]


def test_files_are_hashed_once_a_day_and_when_they_change(tmp_path, monkeypatch):
    hashed, now = [], 0.0
    real = part_files.sha256_of

    def sha256_of(path):
        hashed.append(path.name)
        return real(path)

    monkeypatch.setattr(part_files, "sha256_of", sha256_of)
    digests = part_files.FileDigests(lambda: now)
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"1")
    second.hardlink_to(first)
    for _ in range(3):
        assert digests(first) == digests(second) == real(first)
    assert hashed == ["a"]
    now = part_files.SCRUB_S
    digests(first)
    first.write_bytes(b"22")
    assert digests(second) == real(first)
    assert hashed == ["a", "a", "b"]


def test_files_are_joined_to_one_whose_rows_are_mapped(tmp_path):
    """Rows of an odd number of float32 don't displace the keys of the next table."""
    parts = [
        {
            "table/a/keys": np.arange(first, first + size),
            "table/a/values": np.arange(3 * size, dtype=np.float32).reshape(size, 3) + first,
            "table/b/keys": np.arange(size) - first,
        }
        for first, size in ((0, 5), (100, 0), (7, 3))
    ]
    parts[0] |= {"dense/values": np.ones(7, np.float32), "left/out": np.zeros(1, np.float32)}
    paths = []
    for part, arrays in enumerate(parts):
        folder = write_part(tmp_path, "parts", 0, 1, part, 3, arrays, {})
        paths.append(folder / ARRAYS)
    write_part(tmp_path, "main", 0, 1, 0, 1, Joined(paths, lambda name: name != "left/out"), {})
    snapshot = latest(tmp_path, "main").snapshot
    assert snapshot is not None
    joined = snapshot.read(0)
    assert sorted(joined) == ["dense/values", "table/a/keys", "table/a/values", "table/b/keys"]
    for name, array in joined.items():
        whole = np.concatenate([arrays[name] for arrays in parts if name in arrays])
        assert array.dtype == whole.dtype and np.array_equal(array, whole), name
    for name, array in map_arrays(*snapshot.files(0), lambda name: True).items():
        assert np.array_equal(array, joined[name]) and not array.flags.owndata, "not copied"
