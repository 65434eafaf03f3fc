import json
import shutil

import numpy as np
import pytest

from parameter_server.snapshots import (
    NoSnapshot,
    complete_steps,
    latest,
    load_rows,
    prune,
    write_part,
)  # fmt: skip


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
    assert set(snapshot.read(0, "dense/")) == {"dense/averaged"}


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
    assert snapshot.step == 5 and reasons == [
        "000000-000000000006: incomplete, parts [0] of 2 are missing"
    ]
    write(tmp_path, 6, 0)
    assert latest(tmp_path, "main").snapshot.step == 6


@pytest.mark.parametrize(
    "harm", ["flip", "cut", "no manifest", "rubbish", "wrong step", "no arrays"]
)
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


def test_pruning_keeps_the_newest_complete_ones_and_what_is_being_written(tmp_path):
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
