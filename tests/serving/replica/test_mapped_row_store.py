"""A store over mapped snapshots against one that has every row in memory: any history, the same bits."""

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parameter_server.publish.deltas import Changed, StepDelta
from parameter_server.publish.rounding import round_rows
from parameter_server.storage import mapped_rows, part_files, snapshot_rows, snapshots
from parameter_server.storage.mapped_rows import MappedRows
from parameter_server.storage.part_files import Update
from parameter_server.storage.snapshot_rows import map_rows
from parameter_server.storage.snapshots import write_part
from parameter_server.table.routing import shard_of
from recsys.config.system_config import TableConfig
from serving.replica.row_store import RowStore
from tests.support.serving.replica_harness import made

TABLE = TableConfig("features", 3, 0.1, initial=0.5)
KEYS = np.arange(-8, 9)
PARTS = 2
some_keys = st.sets(st.integers(-8, 8), max_size=6)
histories = st.lists(
    st.tuples(st.just("learn"), some_keys, some_keys)
    | st.tuples(st.sampled_from(["full", "increment", "rebase", "restart"])),
    max_size=25,
)


class Histories:
    """Rows as learned, the deltas of them, snapshots, and two stores that must be equal."""

    def __init__(self, folder: Path, format: str) -> None:
        self.folder, self.format, self.step = folder, format, 0
        self.rows = dict[int, np.ndarray]()
        self.changed = [set[int]() for _ in range(PARTS)]  # since the part's newest snapshot
        self.deltas = list[tuple[np.ndarray, np.ndarray, np.ndarray]]()
        self.whole, self.mapped = RowStore(TABLE, 7), RowStore.over(TABLE, 7, MappedRows())

    def learn(self, changed: set[int], removed: set[int]) -> None:
        self.step += 1
        keys = np.array(sorted(changed - removed), np.int64)
        rows = np.full((len(keys), 3), self.step / 7, np.float32)
        rows += keys[:, None].astype(np.float32) * [1, 2, 3]
        gone = np.array(sorted(removed & set(self.rows)), np.int64)
        self.rows = {k: row for k, row in self.rows.items() if k not in removed}
        self.rows |= dict(zip(keys.tolist(), rows, strict=True))
        for own in self.changed:
            own |= changed | removed
        self.deltas.append((keys, round_rows(rows, self.format).rows, gone))
        for store in (self.whole, self.mapped):
            self._apply(store, self.step)

    def _apply(self, store: RowStore, step: int) -> None:
        keys, rows, gone = self.deltas[step - 1]
        store.set(keys, rows, step)
        store.remove(gone, step)

    def snapshot(self, full: bool) -> None:
        before = snapshots.latest(self.folder, "main").snapshot
        if before is not None and before.step == self.step:
            return
        for part in range(PARTS):
            keys = np.array(sorted(self.rows), np.int64)
            chain = []
            if not full and before is not None:
                folder = before.files(part)[-1].parent
                chain = part_files.files_of(folder, before.manifests[part])
                keys = keys[np.isin(keys, list(self.changed[part]))]
            keys = keys[shard_of(keys, PARTS) == part]
            rows = np.array([self.rows[k] for k in keys.tolist()], np.float32).reshape(-1, 3)
            arrays = {"table/features/keys": keys, "table/features/values": rows}
            if chain:
                gone = np.array(sorted(self.changed[part] - set(self.rows)), np.int64)
                arrays["table/features/removed"] = gone[shard_of(gone, PARTS) == part]
            meta = {"step": self.step, "delta_format": self.format}
            update = Update(arrays, chain)
            write_part(self.folder, "main", 0, self.step, part, PARTS, update, meta)
            self.changed[part].clear()

    def base(self) -> MappedRows:
        if snapshots.latest(self.folder, "main").snapshot is None:
            return MappedRows()
        return map_rows(self.folder, "main").tables["features"]

    def rebase(self) -> None:
        self.mapped = self.mapped.rebased(self.base())

    def restart(self) -> None:
        base = self.base()
        self.mapped = RowStore.over(TABLE, 7, base)
        for step in range(base.step + 1, self.step + 1):
            self._apply(self.mapped, step)

    def check(self) -> None:
        one, other = self.whole, self.mapped
        assert one.lookup(KEYS).tobytes() == other.lookup(KEYS).tobytes()
        assert one.has(KEYS).tolist() == other.has(KEYS).tolist()
        assert (one.digest, len(one)) == (other.digest, len(other))
        for column, theirs in zip(one.export(), other.export(), strict=True):
            assert column.tobytes() == theirs.tobytes()


@settings(max_examples=80, deadline=None)
@given(history=histories, format=st.sampled_from(["fp32", "fp16", "int8"]))
def test_any_history_leads_to_the_rows_of_a_store_in_memory(
    history: list[tuple[Any, ...]], format: str
) -> None:
    with TemporaryDirectory() as folder:
        both = Histories(Path(folder), format)
        for what, *keys in history:
            if what == "learn":
                both.learn(*keys)
            elif what in ("full", "increment"):
                both.snapshot(what == "full")
            else:
                {"rebase": both.rebase, "restart": both.restart}[what]()
            both.check()


def learned(folder: Path) -> Histories:
    """A full snapshot, two increments, and steps beyond."""
    both = Histories(folder, "fp16")
    for step in range(6):
        both.learn({step, -step, 2}, {step - 3})
        if step < 3:
            both.snapshot(full=step == 0)
    return both


def test_a_rebased_store_keeps_what_changed_since_the_snapshot_alone(tmp_path: Path) -> None:
    both = learned(tmp_path)
    assert both.mapped.changed == len(set(KEYS) & {*range(-5, 6)})
    both.rebase()
    newer = {k for keys, _, gone in both.deltas[3:] for k in (*keys.tolist(), *gone.tolist())}
    assert both.mapped.changed == len(newer) < 10
    both.snapshot(full=False)
    both.rebase()
    assert both.mapped.changed == 0
    both.check()


def test_a_removed_snapshot_is_served_from_while_it_is_mapped(tmp_path: Path) -> None:
    both = learned(tmp_path)
    both.restart()
    snapshots.remove(tmp_path, "main")
    both.check()


def indexes(folder: Path) -> list[Path]:
    return sorted(folder.glob("main/*/*-features"))


def test_the_next_snapshot_uses_the_index_of_the_full_file(tmp_path: Path) -> None:
    both = learned(tmp_path)
    both.restart()
    before = {file.stat().st_ino for file in indexes(tmp_path)}
    assert len(before) == 2 * PARTS
    both.snapshot(full=False)
    both.restart()
    after = [file.stat().st_ino for file in indexes(tmp_path)]
    assert len(after) == 4 * PARTS and len(set(after)) == 3 * PARTS and before < set(after)
    both.check()


def truncate(file: Path) -> None:
    os.truncate(file, 100)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[8] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
def test_a_damaged_index_is_made_again(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    both = learned(tmp_path)
    both.restart()
    whole = [file.read_bytes() for file in indexes(tmp_path)]
    for file in indexes(tmp_path):
        damage(file)
    both.restart()
    both.check()
    assert [file.read_bytes() for file in indexes(tmp_path)] == whole


def test_where_no_file_can_be_made_the_index_is_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = learned(tmp_path)

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mapped_rows.os, "posix_fallocate", full)
    both.restart()
    both.check()
    assert not indexes(tmp_path) and not list(tmp_path.glob("main/*/.*-features-*"))


def test_writers_that_share_no_lock_do_not_disturb_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As machines on a network file system: the second begins and ends while the first one writes."""
    both, real, begun, mapped = learned(tmp_path), mapped_rows._fill, [], list[Any]()

    def fill(*args: Any) -> None:
        real(*args)
        if not begun:
            begun.append(True)
            mapped.append(both.base())

    monkeypatch.setattr(mapped_rows.fcntl, "flock", lambda *args: None)
    monkeypatch.setattr(mapped_rows, "_fill", fill)
    mapped.append(both.base())
    for rows in mapped:
        for part in rows._parts:
            assert not any(index.flags.writeable for index in part.indexes)  # of a file
    assert not list(tmp_path.glob("main/*/.*-features-*"))
    both.restart()
    both.check()


def test_each_file_is_mapped_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = {
        f"table/{name}/{column}": array
        for name in ("features", "users")
        for column, array in (("keys", KEYS), ("values", np.ones((len(KEYS), 3), np.float32)))
    }
    write_part(tmp_path, "main", 0, 1, 0, 1, arrays, {"step": 1})
    opened, real = [], snapshot_rows.map_arrays
    monkeypatch.setattr(
        snapshot_rows, "map_arrays", lambda path, *more: opened.append(path) or real(path, *more)
    )
    assert map_rows(tmp_path, "main").tables.keys() == {"features", "users"}
    assert len(opened) == 1


def test_a_snapshot_of_another_model_is_refused(tmp_path: Path) -> None:
    both = learned(tmp_path)
    other = TableConfig("features", 4, 0.1)
    with pytest.raises(ValueError, match="dimension 3 in the snapshot of step 3, expected 4"):
        RowStore.over(other, 7, both.base())


def test_files_are_read_before_a_step_is_applied(tmp_path: Path) -> None:
    """By the thread that reads the log: a disk may take milliseconds."""
    base, looked = learned(tmp_path).base(), []
    replica = made(steps=0)
    replica.rows["features"] = RowStore.over(TABLE, 7, base)
    real = base.lookup
    base.lookup = lambda keys, **more: looked.append(keys.tolist()) or real(keys, **more)  # type: ignore
    changed = Changed(KEYS[:3], np.ones((3, 3), np.float32), KEYS[:0])
    replica.make_room_for_steps([StepDelta(1, 0, {"features": changed}, None, {})])
    assert looked == [KEYS[:3].tolist()]
