"""Rows in a snapshot's mapped files against those put together from whole arrays."""

import numpy as np
import pytest

from parameter_server.rpc.parameter_client import LocalClient
from parameter_server.storage import snapshots
from parameter_server.storage.changes import Changes
from parameter_server.storage.snapshot_rows import map_rows, rows_of
from tests.support.parameter_server.small_line import DENSE, LANES, TABLES, toy_spec, work
from tests.support.parameter_server.snapshot_rows import load_rows

ALL = list(range(LANES))
ABSENT = np.arange(10**9, 10**9 + 50)


def write(folder, line, changes, formats):
    for shard, own, format in zip(line.shards, changes, formats, strict=True):
        update, meta = own.export()
        place = "main", 0, shard.applied, shard.spec.part, shard.spec.parts
        meta |= {"delta_format": format}
        own.written(snapshots.write_part(folder, *place, update, meta), meta)


@pytest.mark.parametrize("budget", [0, 100])
@pytest.mark.parametrize("formats", [["fp32"], ["fp16", "fp16"], ["int8"] * 3, ["fp16", "fp32"]])
def test_they_are_the_published_and_the_learned_rows(tmp_path, formats, budget):
    spec = toy_spec(len(formats), delta_format=formats[0], delta_bytes=budget)
    line = LocalClient.fresh(spec, DENSE)
    changes = [Changes(shard) for shard in line.shards]
    for until in (4, 5, 7, 12):
        work(line, ALL, until)
        write(tmp_path, line, changes, formats)
        loaded, mapped = load_rows(tmp_path, "main"), map_rows(tmp_path, "main")
        assert loaded.dense.tobytes() == mapped.dense.tobytes()
        assert mapped.tables.keys() == loaded.tables.keys() == {t.name for t in TABLES}
        for table in TABLES:
            keys, values = loaded.tables[table.name]
            rows = mapped.tables[table.name]
            assert rows.step == until and rows.dim == table.dim
            found, places = rows.lookup(np.concatenate([keys, ABSENT]))
            assert found[: len(keys)].tobytes() == values.tobytes()
            assert (places >= 0).tolist() == [True] * len(keys) + [False] * len(ABSENT)
            every = [np.concatenate(column) for column in zip(*rows.blocks(), strict=True)]
            orders = np.argsort(keys), np.argsort(every[0])
            assert (keys[orders[0]] == every[0][orders[1]]).all()
            assert values[orders[0]].tobytes() == every[1][orders[1]].tobytes()
            for shard in line.shards:
                own = shard.tables[table.name].export()["keys"]
                learned = rows_of(mapped.snapshot, table, spec.seed, own)
                assert learned.tobytes() == shard.tables[table.name].lookup(own).tobytes()
    withheld = [sum(shard.published.withheld.values()) for shard in line.shards]
    assert all(withheld) if budget else not any(withheld)
    assert len(mapped.snapshot.files(0)) > 1  # increments
    assert map_rows(tmp_path, "main", wanted=["other"]).tables == {}


def test_a_snapshot_that_is_removed_while_it_is_opened_gives_way_to_the_next(tmp_path, monkeypatch):
    line = LocalClient.fresh(toy_spec(1), DENSE)
    changes = [Changes(shard) for shard in line.shards]
    for until in (2, 4):
        work(line, ALL, until)
        write(tmp_path, line, changes, ["fp32"])
    real = snapshots.Snapshot.read

    def read(snapshot, *more):
        if snapshot.step == 4:
            snapshots.remove_where(tmp_path, "main", lambda epoch, step: step == 4)
        return real(snapshot, *more)

    monkeypatch.setattr(snapshots.Snapshot, "read", read)
    assert map_rows(tmp_path, "main").snapshot.step == 2
    with pytest.raises(snapshots.NoSnapshot):
        map_rows(tmp_path, "main", 0, 4)
