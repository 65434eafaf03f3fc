"""A replica that starts from a snapshot of the catalogue equals one that folded all records."""

import asyncio
import fcntl
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import msgspec
import numpy as np
import pytest

from benchmarks.answers.bench_serve_state import STEP, build, draw_items, user_of
from benchmarks.harness.memory_sessions import MemorySessions
from parameter_server.publish.deltas import seal
from recsys.config.system_config import Config, ParameterServerConfig
from recsys.events.event_types import Item, encode
from recsys.events.hashing import key_of
from recsys.events.records import DELTAS, ITEMS, Delta, TableRows, pack
from recsys.features.catalogue import PackedList, _packed
from recsys.log.protocol import Append, Log
from recsys.process.disk_budget import Level, Space
from recsys.process.open_log import open_log
from recsys.process.space_file import FILE
from serving.replica import catalogue_snapshot
from serving.replica.state_reader import StateReader
from serving.request import Request
from serving.service import Service

pytestmark = pytest.mark.slow
NOW_MS = 1_790_000_000_000
_ITEMS = 2_000


class World:
    """A log with a catalogue and weights, and replicas that start from it."""

    def __init__(self, state: Path) -> None:
        base = Config()
        serve = replace(base.serve, index="ivf", deadline_ms=600_000)
        shards = ParameterServerConfig(shards=1)
        self.config = replace(base, state=str(state), serve=serve, parameter_server=shards)
        self.sessions = MemorySessions()
        self.sessions.blobs = build(self.config, _ITEMS, 1, NOW_MS).sessions
        self.log: Log = open_log(self.config)
        self.folder = state / "catalogue"

    def finished(self) -> list[Path]:
        """Snapshots; nothing else but the lock is there."""
        folders = [path for path in self.folder.glob("*") if path.name != ".lock"]
        assert not [path for path in folders if path.name.startswith(".")]
        return folders

    def replica(self, folds_all: bool = False, shards: Any = None) -> Service:
        """One that has caught up."""
        service = Service(self.config, self.log, self.sessions, lambda: NOW_MS, shards)
        if folds_all:
            service.reader.catalogue = None
        service.reader.catch_up(lambda: False)
        return service

    def publish(self, *items: Item) -> None:
        self.log.append(ITEMS, [Append(0, b"", encode(item)) for item in items])

    def learn(self, numbers: Sequence[int]) -> None:
        """Publishes a step that moves the vectors of some items."""
        dim = self.config.model.vector_dim
        keys = np.array([key_of("item", f"v{n}") for n in numbers], np.int64)
        values = np.random.default_rng(1).standard_normal((len(keys), dim)).astype(np.float32)
        rows = TableRows(table="items", dim=dim, keys=keys.tobytes(), values=values.tobytes())
        about: dict[str, Any] = {"line": "main", "epoch": 0, "base_step": STEP, "time_ms": NOW_MS}
        delta = Delta(step=STEP + 1, part=0, parts=1, tables=[rows], **about)
        self.log.append(DELTAS, [Append(0, b"", pack(seal(delta)))])

    def change(self) -> None:
        """Publishes new items, changes, a removal and a return, and new weights."""
        new = next(draw_items(60, 7, NOW_MS))
        self.publish(*(msgspec.structs.replace(item, item_id=f"n{item.item_id}") for item in new))
        self.publish(*new)  # other authors and tags of v0 … v59
        self.publish(*(Item(time_ms=NOW_MS, item_id=f"v{n}", removed=True) for n in range(70, 90)))
        self.publish(Item(time_ms=NOW_MS, item_id="v80", fields={"author": "a1", "tags": ["t1"]}))
        self.learn(range(40, 140))


def follow(reader: StateReader) -> None:
    while (batch := reader.read()).full:
        reader.apply(batch)


def reads_of_items(world: World) -> list[int]:
    """Offsets at which ``items`` is read from now on."""
    reads, read = list[int](), world.log.read

    def spy(topic: str, partition: int, offset: int, limit: int = 1) -> Any:
        reads.extend([offset] if topic == ITEMS else [])
        return read(topic, partition, offset, limit)

    world.log.read = spy  # type: ignore[method-assign]
    return reads


def is_mapped(array: Any) -> bool:
    while isinstance(array, np.ndarray):
        array = array.base
    return isinstance(array, mmap.mmap)


def answers(service: Service) -> list[bytes]:
    async def ask() -> Iterator[Any]:
        requests = [Request(user_id=user_of(n), n=20) for n in range(40)]
        return iter(
            [await service.recommend(r, f"{n:032x}", False) for n, r in enumerate(requests)]
        )

    listed = asyncio.run(ask())
    return [msgspec.msgpack.encode((answer.impression, answer.items)) for answer in listed]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(catalogue_snapshot, "_LEAST", 100)
    world = World(tmp_path)
    yield world
    world.log.close()


def test_answers_are_those_of_a_replica_that_folded_all_records(world: World) -> None:
    expected = world.replica(folds_all=True)
    assert not world.folder.exists()
    services = [world.replica(), world.replica()]  # the first writes the snapshot
    reads = reads_of_items(world)
    services.append(world.replica())
    assert min(reads) == _ITEMS
    before = answers(expected)
    assert all(answers(service) == before for service in services)
    world.change()
    for service in (expected, *services):
        follow(service.reader)
    services.append(world.replica())
    after = answers(expected)
    assert after != before and expected.replica.step == STEP + 1
    for service in services:
        assert service.reader.catalogue is not None and not service.reader.catalogue.damaged
        assert answers(service) == after
        assert list(service.replica.catalogue.fields) == list(expected.replica.catalogue.fields)


def test_memory_of_items_is_that_of_the_files_until_they_change(world: World) -> None:
    saver, other = world.replica().replica, world.replica().replica
    for replica in (saver, other):
        catalogue = replica.catalogue
        assert isinstance(catalogue.ids, PackedList)
        assert all(is_mapped(array) for array in (catalogue.keys, replica.index.vectors))
    other.apply_item(Item(time_ms=NOW_MS, item_id="v3", fields={"author": "else"}), _ITEMS + 1)
    assert saver.catalogue.fields[3] != {"author": "else"} == other.catalogue.fields[3]
    assert saver.catalogue.keys[3].tobytes() != other.catalogue.keys[3].tobytes()


@pytest.mark.parametrize("name", ["_keys", "ids", "groups_members", "lists", "vectors", "offset"])
def test_a_damaged_snapshot_is_counted_and_replaced(world: World, name: str) -> None:
    expected = answers(world.replica())
    (folder,) = world.finished()
    file = folder / f"{name}.npy"
    data = bytearray(file.read_bytes())
    data[128 + (len(data) - 128) // 2] ^= 1
    file.write_bytes(data)
    service = world.replica()
    assert service.reader.catalogue is not None and service.reader.catalogue.damaged == 1
    assert answers(service) == expected
    again = world.replica()
    assert again.reader.catalogue is not None and again.reader.catalogue.damaged == 0


def test_a_snapshot_that_lacks_files_is_not_used(world: World) -> None:
    world.replica()
    (folder,) = world.finished()
    (folder / "ids.npy").unlink()
    service = world.replica()
    assert service.reader.catalogue is not None and service.reader.catalogue.damaged == 1


def test_a_snapshot_that_lacks_many_records_is_replaced(world: World) -> None:
    world.replica()
    (before,) = world.finished()
    world.change()
    world.replica()
    (after,) = world.finished()
    assert after != before


def test_the_snapshot_of_another_definition_is_not_used(world: World) -> None:
    expected = answers(world.replica())
    (before,) = world.finished()
    world.config = replace(world.config, serve=replace(world.config.serve, index="flat"))
    flat = world.replica()
    assert flat.replica.index.name == "" and not before.exists()
    assert answers(flat) != expected


def damaged(service: Service) -> int:
    assert service.reader.catalogue is not None
    return service.reader.catalogue.damaged


@pytest.mark.parametrize("kind", ["empty", "header", "zip", "length"])
def test_damage_that_numpy_reports_otherwise_is_counted_and_replaced(
    world: World, kind: str
) -> None:
    expected = answers(world.replica())
    (folder,) = world.finished()
    file = folder / "_keys.npy"
    good = file.read_bytes()
    data = {
        "empty": b"",
        "header": good[:25] + b"(" + good[26:],
        "zip": b"PK\x03\x04" + good[4:],
        "length": good[:-100],
    }
    file.write_bytes(data[kind])
    service = world.replica()
    assert damaged(service) == 1 and answers(service) == expected
    assert damaged(world.replica()) == 0 and len(world.finished()) == 1


@pytest.mark.parametrize("fails", [False, True])
def test_of_replicas_that_start_together_one_writes_and_the_others_start_from_its_snapshot(
    world: World, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """Where it fails, they read all records, and write none."""
    save, others = np.save, list[Thread]()
    services, written = list[Service](), list[Path]()

    def start_another(path: Path, array: Any) -> None:
        written.append(path)
        if not others:  # the log has more items for the second
            world.publish(*(Item(time_ms=NOW_MS, item_id=f"late{n}", fields={}) for n in range(5)))
            others.append(Thread(target=lambda: services.append(world.replica())))
            others[0].start()
            others[0].join(2)
            assert others[0].is_alive()  # it waits
            if fails:
                raise OSError(28, "No space left on device")
        save(path, array)

    reads = reads_of_items(world)
    monkeypatch.setattr(np, "save", start_another)
    first = world.replica()
    others[0].join()
    monkeypatch.undo()
    monkeypatch.setattr(catalogue_snapshot, "_LEAST", 100)
    assert reads.count(0) == (2 if fails else 1) and len({path.parent for path in written}) == 1
    if fails:
        assert not world.finished()
        return
    services.append(first)
    assert len(world.finished()) == 1 and first.replica.catalogue_offset == _ITEMS
    expected = world.replica(folds_all=True)
    for service in services:
        assert damaged(service) == 0 and is_mapped(service.replica.catalogue.keys)
        follow(service.reader)
        assert len(service.replica.catalogue) == len(service.replica.index) == _ITEMS + 5
        assert service.replica.index.name and len(answers(service)) == len(answers(expected))


def test_an_index_in_retrieval_shards_is_not_restored(world: World) -> None:
    world.replica()
    (before,) = world.finished()
    serve = replace(world.config.serve, retrieval_shards=2)
    world.config = replace(world.config, serve=serve)
    for _ in range(2):
        sharded = world.replica(shards=[object(), object()])
        assert not sharded.replica.indexed and len(sharded.replica.catalogue) == _ITEMS
    (after,) = world.finished()
    assert after != before and not (after / "lists.npy").exists()


def test_snapshots_of_other_definitions_and_unfinished_ones_are_removed(world: World) -> None:
    world.replica()
    (own,) = world.finished()
    for name in ("0123-89abcdef", ".unfinished"):
        (world.folder / name).mkdir()
    world.replica()
    assert world.finished() == [own]


def test_nothing_is_removed_while_a_replica_writes(world: World) -> None:
    world.replica()
    partial = world.folder / ".unfinished"
    partial.mkdir()
    with (world.folder / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        world.replica()
        assert partial.exists()


@pytest.mark.parametrize("level", [Level.LOW, Level.FULL])
def test_no_snapshot_is_written_while_space_is_low(world: World, level: Level) -> None:
    run = Path(world.config.state) / "run"
    run.mkdir(exist_ok=True)
    (run / FILE).write_bytes(msgspec.json.encode(Space(level=level, time_ms=NOW_MS)))
    assert len(answers(world.replica())) == 40 and not world.folder.exists()
    (run / FILE).write_bytes(msgspec.json.encode(Space(level=Level.OK, time_ms=NOW_MS)))
    world.replica()
    assert len(world.finished()) == 1


def test_files_are_on_the_disk_before_they_count(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, at_rename, rename = list[str](), list[str](), Path.rename

    def renamed(path: Path, target: Path) -> Path:
        at_rename.extend(synced)
        return rename(path, target)

    for name in ("sync_file", "sync_folder"):
        monkeypatch.setattr(catalogue_snapshot, name, lambda path: synced.append(path.name))
    monkeypatch.setattr(Path, "rename", renamed)
    world.replica()
    (folder,) = world.finished()
    assert {path.name for path in folder.iterdir()} < {*at_rename} and at_rename[-1][0] == "."
    assert synced[-1] == "catalogue"


@pytest.mark.parametrize("files", [0, 5])
def test_without_space_a_replica_answers_from_memory(
    world: World, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    """An older snapshot stays."""
    expected = world.replica(folds_all=True)
    world.replica()
    before = world.finished()
    world.change()
    save, saved = np.save, list[Path]()

    def full(path: Path, array: Any) -> None:
        if len(saved) == files:
            raise OSError(28, "No space left on device")
        saved.append(path)
        save(path, array)

    monkeypatch.setattr(np, "save", full)
    service = world.replica()
    assert len(saved) == files and world.finished() == before
    follow(expected.reader)
    assert answers(service) == answers(expected)


def test_packed_values_are_a_list() -> None:
    values: list[Any] = [{"a": "b"}, 7, "7", ["x", 1.5]]
    packed = PackedList(*_packed("values", values).values())
    assert list(packed) == values and packed[-1] == values[-1] and len(packed) == 4
    packed[1] = {}
    packed.append("new")
    assert [*packed] == [{"a": "b"}, {}, "7", ["x", 1.5], "new"] and packed[-5] == {"a": "b"}
    assert PackedList(*_packed("values", packed).values())[4] == "new"
    assert (
        packed[2:] == packed[-3:] == ["7", ["x", 1.5], "new"] and "7" in packed and 7 not in packed
    )
    with pytest.raises(IndexError):
        packed[5]
