"""Other numbers of shards: state, lookups and what is learned afterwards are those of a line that never had
another."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from parameter_server.publish.deltas import DeltaAssembler, Gap
from parameter_server.rpc.parameter_client import LocalClient, part_of
from parameter_server.shard.lanes import LaneGradients
from parameter_server.shard.shard import ShardSpec, digest_of_shards
from parameter_server.shard.wal_settings import changes, spec_by_settings, wal_settings_of
from parameter_server.storage import reshard, snapshots
from parameter_server.storage.durable_shard import DurableShard, ShardStorage
from parameter_server.storage.reshard import Resharded, ShardFiles, reshard_line
from parameter_server.table.table import ROW_COLUMNS, digest_of_exports
from recsys.config.system_config import laptop
from serving.replica.row_store import RowStore
from tests.support.parameter_server.durable_client import DurableClient
from tests.support.parameter_server.small_line import DENSE, LANES, TABLES, keys_of, toy_spec, work

ALL = list(range(LANES))
SPEC = toy_spec(2, delta_format="fp16", delta_bytes=120, settle_every=17, digest_every=3)


class Line(DurableClient):
    """Durable shards of one layout, in this process."""

    def __init__(self, folder: Path, spec: ShardSpec, publish: Callable[[list[bytes]], None]):
        files = files_in(folder)
        self.done = reshard_line(spec, files, publish, DENSE)
        durable = []
        for part in range(spec.parts):
            own = part_of(spec, part)
            home = ShardStorage(files.snapshots, files.wal(own), snapshot_every=10, snapshots_kept=2)
            first = DENSE if part == 0 else None
            durable.append(DurableShard(own, home, publish, first))
        super().__init__(durable)


def files_in(folder: Path) -> ShardFiles:
    return ShardFiles(folder / "snapshots", folder / "wals")


def oracle(until: int) -> LocalClient:
    line = LocalClient.fresh(replace(SPEC, parts=1), DENSE)
    work(line, ALL, until)
    return line


def scores(line: LocalClient, step: int) -> bytes:
    rows = line.lookup(step, keys_of(step, 1)) | line.lookup(step, keys_of(step - 3, 0))
    return b"".join(array.tobytes() for array in (*rows.values(), line.dense(step)))


def digest_of_rows(line: LocalClient) -> str:
    """Of rows and optimizer, without the counts of sightings."""
    exports = [shard.tables[table.name].export() for table in TABLES for shard in line.shards]
    whole = []
    for number, _ in enumerate(TABLES):
        part = exports[number * len(line.shards) : (number + 1) * len(line.shards)]
        whole.append(digest_of_exports([{k: e[k] for k in ROW_COLUMNS} for e in part]))
    return " ".join(whole)


def test_two_shards_become_three_and_one_and_change_no_bit(tmp_path: Path) -> None:
    published: list[bytes] = []
    for parts, until, came in ((2, 17, None), (3, 24, Resharded(2, 17)), (1, 38, Resharded(3, 24))):
        line = Line(tmp_path, replace(SPEC, parts=parts), published.extend)
        assert line.done == came
        if came is not None:
            before = oracle(came.step)
            assert line.applied_steps() == [came.step] * parts
            assert digest_of_shards(line.shards) == digest_of_shards(before.shards)
            assert scores(line, came.step) == scores(before, came.step)
        work(line, ALL, until)
        assert digest_of_shards(line.shards) == digest_of_shards(oracle(until).shards)
        assert line.shards[0].counters.updated > 0
        counted = sum(shard.counters.updated for shard in line.shards)
        assert counted == sum(shard.counters.updated for shard in oracle(until).shards)
        line.close()
        names = sorted(file.name for file in (tmp_path / "wals").iterdir())
        assert names == [f"main-0-{part}-of-{parts}.wal" for part in range(parts)]


def test_a_replica_goes_on_over_the_change(tmp_path: Path) -> None:
    published: list[bytes] = []
    assembler = DeltaAssembler("main", 0, 0)
    copies = {table.name: RowStore(table, SPEC.seed) for table in TABLES}
    fed = 0
    for parts, until in ((2, 17), (3, 34), (1, 51)):  # each ends with a step that settles
        line = Line(tmp_path, replace(SPEC, parts=parts), published.extend)
        work(line, ALL, until)
        line.close()
        for value in published[fed:]:
            steps = assembler.feed(value)
            assert not isinstance(steps, Gap), steps
            for step in steps:
                for name, changed in step.tables.items():
                    copies[name].set(changed.keys, changed.values)
                    copies[name].remove(changed.removed)
        fed = len(published)
        assert assembler.step == until
        for table in TABLES:
            for shard in line.shards:
                keys = shard.tables[table.name].export()["keys"]
                mine, its = copies[table.name].lookup(keys), shard.tables[table.name].lookup(keys)
                assert np.abs(mine - its).max(initial=0) < 1e-2


def test_a_shard_that_is_a_step_ahead_waits_for_the_others(tmp_path: Path) -> None:
    line = Line(tmp_path, SPEC, lambda values: None)
    work(line, ALL, 15)
    ahead = line.durable[1]
    ahead._publish = lambda values: None
    lanes = []

    def caught(step: int, time_ms: int, own: object) -> None:
        lanes.append((step, time_ms, own))
        raise InterruptedError

    line.durable[0].learn = caught  # type: ignore[method-assign]
    with pytest.raises(InterruptedError):
        work(line, ALL, 16)
    step, time_ms, _own = lanes[0]
    ahead.learn(step, time_ms, [LaneGradients(lane) for lane in ALL])  # its own of the step
    assert (line.durable[0].applied, ahead.applied) == (15, 16)
    line.close()
    after = Line(tmp_path, replace(SPEC, parts=3), lambda values: None)
    assert after.done == Resharded(2, 15)
    work(after, ALL, 30)
    assert digest_of_shards(after.shards) == digest_of_shards(oracle(30).shards)


@pytest.mark.parametrize("dies_at", ["first part", "second part", "removal"])
def test_killed_on_the_way_it_is_the_old_shards_or_the_new(
    tmp_path: Path, dies_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Line(tmp_path, SPEC, lambda values: None)
    work(line, ALL, 17)
    line.close()
    real, left = snapshots.write_part, {"first part": 0, "second part": 1, "removal": 99}[dies_at]

    def write_part(*arguments: object) -> Path:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        return real(*arguments)  # type: ignore[arg-type]

    def unlink(path: Path, missing_ok: bool = False) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(reshard.snapshots, "write_part", write_part)
        if dies_at == "removal":
            patch.setattr(Path, "unlink", unlink)
        reshard_line(replace(SPEC, parts=3), files_in(tmp_path), lambda values: None, DENSE)
    for parts in (2, 3) if dies_at == "second part" else (3,):  # someone may change his mind
        line = Line(tmp_path, replace(SPEC, parts=parts), lambda values: None)
        assert line.applied_steps() == [17] * parts
        assert digest_of_shards(line.shards) == digest_of_shards(oracle(17).shards)
        line.close()


def test_what_a_snapshot_holds_already_needs_no_cutting(tmp_path: Path) -> None:
    line = Line(tmp_path, SPEC, lambda values: None)
    work(line, ALL, 20)  # a snapshot is taken at each tenth step
    line.close()
    after = Line(tmp_path, replace(SPEC, parts=3), lambda values: None)
    assert after.done is None and after.applied_steps() == [20, 20, 20]
    assert digest_of_shards(after.shards) == digest_of_shards(oracle(20).shards)


@pytest.mark.slow
def test_the_number_may_change_together_with_what_a_table_is_set_to(tmp_path: Path) -> None:
    unlike = tuple(replace(table, admit_after=1) for table in TABLES)
    tight = tuple(replace(table, budget_mb=300 / 2**20) for table in unlike)  # a few rows
    old = replace(SPEC, parts=11, tables=unlike)
    line = Line(tmp_path, old, lambda values: None)
    work(line, ALL, 5)
    line.close()
    first = LocalClient.fresh(replace(old, parts=1), DENSE)
    work(first, ALL, 5)
    rows = scores(first, 5)

    sights = replace(SPEC, parts=10)  # 11 parts can't share the counts of sightings
    line = Line(tmp_path, sights, lambda values: None)
    assert line.done == Resharded(11, 5) and line.applied_steps() == [5] * 10
    assert digest_of_rows(line) == digest_of_rows(first) and scores(line, 5) == rows
    work(line, ALL, 7)
    counted = sum(shard.tables["items"].waiting for shard in line.shards)
    rows, before = scores(line, 7), digest_of_rows(line)
    line.close()

    line = Line(tmp_path, replace(SPEC, parts=9), lambda values: None)
    assert sum(shard.tables["items"].waiting for shard in line.shards) == counted > 0
    work(line, ALL, 9)
    rows, before = scores(line, 9), digest_of_rows(line)
    line.close()

    line = Line(tmp_path, replace(SPEC, parts=8, tables=tight), lambda values: None)
    assert line.done == Resharded(9, 9)  # a smaller budget makes none of the old steps lose a row
    assert digest_of_rows(line) == before and scores(line, 9) == rows
    assert not sum(shard.counters.evicted for shard in line.shards)
    work(line, ALL, 10)
    assert sum(shard.counters.evicted for shard in line.shards) > 0
    line.close()


@pytest.mark.slow
def test_settings_that_changed_after_the_snapshot_may_not_fit_the_old_number(tmp_path: Path) -> None:
    line = Line(tmp_path, replace(SPEC, parts=10), lambda values: None)
    work(line, ALL, 10)  # a snapshot of 10 parts that count sightings
    line.close()
    unlike = tuple(replace(table, admit_after=1) for table in TABLES)
    line = Line(tmp_path, replace(SPEC, parts=11, tables=unlike), lambda values: None)
    work(line, ALL, 13)
    rows, before = scores(line, 13), digest_of_rows(line)
    line.close()
    line = Line(tmp_path, replace(SPEC, parts=12), lambda values: None)
    assert line.done == Resharded(11, 13)
    assert digest_of_rows(line) == before and scores(line, 13) == rows
    line.close()


def test_before_shards_start_those_of_a_number_that_no_longer_fits_are_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from parameter_server.rpc import shard_actor
    from parameter_server.storage import shard_home

    old = replace(SPEC, parts=11, tables=tuple(replace(t, admit_after=1) for t in TABLES))
    config, stopped = replace(laptop(), state=str(tmp_path)), []
    folder = shard_home.files_of(config).wals
    folder.mkdir(parents=True)
    for part in range(11):
        shard_home.home_of(part_of(old, part), config).wal.touch()
    monkeypatch.setattr(
        shard_actor,
        "running_shards",
        lambda spec: [shard_actor.actor_name(spec, part) for part in range(spec.parts)],
    )
    monkeypatch.setattr(shard_actor, "stop_shards", stopped.extend)
    monkeypatch.setattr(shard_actor, "reshard_line", lambda spec, *_: Resharded(11, spec.parts))
    assert shard_actor.stop_and_reshard(replace(SPEC, parts=10), config, DENSE) == Resharded(11, 10)
    assert stopped == [f"shard-main-0-{part}-of-11" for part in range(11)]


def test_a_spec_comes_back_from_its_rules() -> None:
    other = replace(
        SPEC, tables=tuple(replace(t, budget_mb=2.5, ttl_s=7) for t in TABLES), dense_rate=0.3, lanes=2
    )
    found = spec_by_settings(wal_settings_of(other), SPEC)
    assert found == replace(SPEC, tables=other.tables, dense_rate=0.3, lanes=2)
    assert spec_by_settings("", SPEC) == SPEC


def test_settings_of_another_version_are_refused():
    rules = json.loads(wal_settings_of(SPEC))
    del rules["dense_first"]
    before = json.dumps(rules)
    with pytest.raises(ValueError, match="expected also dense_first: another version wrote it"):
        spec_by_settings(before, SPEC)
    assert changes(before, wal_settings_of(replace(SPEC, dense_first=10.0))) == [
        "dense_first was not there, is 10.0"
    ]


def test_a_file_that_is_missing_costs_the_steps_after_the_snapshot_alone(tmp_path: Path) -> None:
    line = Line(tmp_path, SPEC, lambda values: None)
    work(line, ALL, 17)
    line.close()
    files_in(tmp_path).wal(part_of(SPEC, 1)).unlink()
    after = Line(tmp_path, replace(SPEC, parts=3), lambda values: None)
    assert after.done is None and after.applied_steps() == [10, 10, 10]  # trainers learn them again
    work(after, ALL, 17)
    assert digest_of_shards(after.shards) == digest_of_shards(oracle(17).shards)


def test_files_stay_where_no_snapshot_can_be_used(tmp_path: Path) -> None:
    line = Line(tmp_path, SPEC, lambda values: None)
    work(line, ALL, 34)
    line.close()
    files = files_in(tmp_path)
    for arrays in files.snapshots.rglob("*.safetensors"):
        arrays.write_bytes(b"")
    with pytest.raises(snapshots.NoUsableSnapshot, match="doesn.t begin at step 0"):
        reshard_line(replace(SPEC, parts=3), files, lambda values: None, DENSE)
    assert len(list(files.wals.glob("*-of-2.wal"))) == 2
