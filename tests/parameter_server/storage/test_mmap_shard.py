"""A shard over a mapped snapshot against one that has it in memory: the same steps, the same bits."""

import json
from dataclasses import replace
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from parameter_server.rpc.parameter_client import LocalClient
from parameter_server.shard.shard import Shard
from parameter_server.storage import snapshots
from parameter_server.storage.changes import Changes
from parameter_server.storage.durable_shard import load_shard
from parameter_server.storage.mmap_shard import map_arrays, open_mmap_shard
from parameter_server.table.dense import SENT
from parameter_server.table.overlay_table import OverlayTable
from recsys.events.records import pack
from tests.support.parameter_server.small_line import (
    DENSE,
    LANES,
    TABLES,
    cut,
    keys_of,
    lane_of,
    time_of,
    toy_spec,
    union,
    work,
)
from tests.support.parameter_server.snapshot_rows import load_rows

ALL = list(range(LANES))
# The smallest counts of sightings that there are: they are in each snapshot and digest.
SMALL = (TABLES[0], replace(TABLES[1], sketch_mb=0.3))


def spec_of(parts=1, **changes):
    return replace(toy_spec(parts, **changes), tables=SMALL)


def save(folder, shard):
    arrays, meta = shard.export()
    spec = shard.spec
    snapshots.write_part(folder, "main", 0, shard.applied, spec.part, spec.parts, arrays, meta)


def saved(folder, spec, *steps):
    """The newest snapshot of a line that takes one after each of some steps."""
    line = LocalClient.fresh(spec, DENSE)
    changes = [Changes(shard) for shard in line.shards]
    for until in steps:
        work(line, ALL, until)
        for shard, own in zip(line.shards, changes, strict=True):
            update, meta = own.export()
            place = "main", 0, shard.applied, shard.spec.part, spec.parts
            own.written(snapshots.write_part(folder, *place, update, meta), meta)
    return snapshots.latest(folder, "main").snapshot


def both(spec, snapshot, step=None):
    plain = Shard(spec, DENSE if spec.part == 0 else None)
    load_shard(plain, snapshot)
    plain.applied = plain.applied if step is None else step
    return plain, open_mmap_shard(spec, DENSE if spec.part == 0 else None, snapshot, step)


def is_mapped(shard):
    return all(isinstance(table, OverlayTable) for table in shard.tables.values())


def same(plain, other):
    assert plain.digest() == other.digest() and plain.counters == other.counters
    assert plain.published.digest == other.published.digest
    assert plain.published.withheld == other.published.withheld
    for step in (plain.applied, plain.applied - 1):
        try:
            rows = plain.lookup(step, union(plain.applied, ALL))
        except RuntimeError:  # it has just begun, and can't go back
            continue
        theirs = other.lookup(step, union(plain.applied, ALL))
        assert all(rows[name].tobytes() == theirs[name].tobytes() for name in rows)


def learn_both(plain, other, until, forget=lambda step: {}):
    """Both take the same steps; returns what left and what came back after it had."""
    left, back = set(), set()
    while plain.applied < until:
        step = plain.applied + 1
        rows = plain.lookup(step - 1, union(step, ALL))
        lanes = [
            lane_of(step, lane, own, plain.dense.values)
            for lane, own in zip(ALL, cut(step, ALL, rows), strict=True)
        ]
        lanes[0] = replace(lanes[0], forget=forget(step))
        one, two = (shard.learn(step, time_of(step), lanes) for shard in (plain, other))
        assert pack(one) == pack(two)
        if step % 3 == 0 or step == until:
            same(plain, other)
        for table in one.tables:
            back |= left & set(np.frombuffer(table.keys, np.int64).tolist())
            left |= set(np.frombuffer(table.removed, np.int64).tolist())
    return left, back


@settings(max_examples=6, deadline=None)
@given(
    st.sampled_from(["fp32", "fp16", "int8"]),
    st.sampled_from([0, 120]),
    st.lists(st.integers(1, 18), min_size=1, max_size=3, unique=True).map(sorted),
    st.integers(0, 9),
)
def test_the_same_steps_give_the_same_bits(format, delta_bytes, steps, forgotten):
    spec = spec_of(delta_format=format, delta_bytes=delta_bytes, settle_every=17, digest_every=1)
    with TemporaryDirectory() as folder:
        snapshot = saved(folder, spec, *steps)
        plain, other = both(spec, snapshot)
        assert is_mapped(other)
        same(plain, other)

        def forget(step):
            """Some of what the step before learned, and some that no row has."""
            keys = {name: its[:forgotten] for name, its in keys_of(step - 1, 1).items()}
            return keys if step % 3 == 0 else {}

        learn_both(plain, other, steps[-1] + 9, forget)
        save(folder, other)  # it is a snapshot like any
        again, mapped = both(spec, snapshots.latest(folder, "main").snapshot)
        same(again, mapped)
        assert again.digest() == plain.digest()
        learn_both(again, mapped, steps[-1] + 11)


def test_rows_expire_leave_and_come_back(tmp_path):
    spec = spec_of()
    plain, other = both(spec, saved(tmp_path, spec, 12))
    left, back = learn_both(plain, other, 50, lambda step: {n: k[:3] for n, k in keys_of(step, 2).items()})
    assert plain.counters.expired > 10 and len(left) > 20 and len(back) > 3
    assert other.tables["items"].waiting == plain.tables["items"].waiting > 0


@pytest.mark.parametrize("admit_after, files", [(2, 2), (1, 3)])
def test_increments_go_over_the_full_file(tmp_path, admit_after, files):
    spec = spec_of(delta_format="fp16", delta_bytes=120, settle_every=17)
    spec = replace(spec, tables=(SMALL[0], replace(SMALL[1], admit_after=admit_after)))
    snapshot = saved(tmp_path, spec, *range(40, 40 + files))
    assert len(snapshot.files(0)) == files
    plain, other = both(spec, snapshot)
    assert is_mapped(other) and any(plain.published.withheld.values())
    assert 0 < other.tables["features"].changed < len(other.tables["features"])
    same(plain, other)
    learn_both(plain, other, 60)


def test_a_step_may_be_given(tmp_path):
    plain, other = both(spec_of(), saved(tmp_path, spec_of(), 9), 30)
    assert other.applied == 30
    learn_both(plain, other, 33)


def test_it_has_the_dense_parameters_that_replicas_have(tmp_path):
    spec = spec_of(dense_every_ms=9_000)
    snapshot = saved(tmp_path, spec, 8, 9)  # sent with step 7
    sent = [shard.export()[0][SENT] for shard in both(spec, snapshot)]
    assert all(np.array_equal(dense, load_rows(tmp_path, "main").dense) for dense in sent)


def test_what_is_mapped_outlives_its_files(tmp_path):
    snapshot = saved(tmp_path, spec_of(), 9)
    plain, other = both(spec_of(), snapshot)
    for path in snapshot.files(0):
        path.unlink()
    learn_both(plain, other, 20)


def test_each_of_two_shards_maps_its_own_part(tmp_path):
    spec = spec_of(2)
    snapshot = saved(tmp_path, spec, 20)
    for part in range(2):
        plain, other = both(replace(spec, part=part), snapshot)
        assert is_mapped(other) and len(other.tables["features"])
        same(plain, other)


def test_what_another_number_of_shards_wrote_is_read(tmp_path):
    snapshot = saved(tmp_path, spec_of(2), 20)
    plain, other = both(spec_of(), snapshot)
    assert not is_mapped(other)
    same(plain, other)


def test_a_table_of_another_dimension_is_refused_as_ever(tmp_path):
    snapshot = saved(tmp_path, spec_of(), 20)
    spec = replace(spec_of(), tables=(replace(SMALL[0], dim=4), SMALL[1]))
    with pytest.raises(ValueError):
        load_shard(Shard(spec, DENSE), snapshot)
    with pytest.raises(ValueError):
        open_mmap_shard(spec, DENSE, snapshot)


def test_a_mapped_file_is_what_was_written(tmp_path):
    file = tmp_path / "a.safetensors"
    arrays = {
        "b/values": np.arange(12, dtype=np.float32).reshape(4, 3),
        "a/keys": np.array([-(2**63), 2**63 - 1, 0]),
        "none": np.empty((0, 5), np.float32),
        "odd": np.ones(3, np.uint8),
    }
    save_file(arrays, file, {"of": "a test"})
    mapped = map_arrays(file, lambda name: name != "odd")
    assert mapped.keys() == arrays.keys() - {"odd"}
    for name, array in mapped.items():
        expected = load_file(file)[name]
        assert array.dtype == expected.dtype and array.shape == expected.shape
        assert array.tobytes() == expected.tobytes()
        assert not array.flags.writeable or not array.size
        assert not array.flags.owndata or not array.size
    with pytest.raises(ValueError, match="odd is U8, expected one of I64, F32"):
        map_arrays(file, lambda name: True)


def test_what_isnt_aligned_is_copied(tmp_path):
    file, data = tmp_path / "a.safetensors", np.arange(5)
    its = {"a": {"dtype": "I64", "shape": [5], "data_offsets": [0, 40]}}
    header = json.dumps(its).encode()
    header += b" " * (5 - len(header) % 8)
    file.write_bytes(len(header).to_bytes(8, "little") + header + data.tobytes())
    array = map_arrays(file, lambda name: True)["a"]
    assert array.tolist() == data.tolist() and array.flags.aligned
