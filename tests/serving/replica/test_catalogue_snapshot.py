"""A replica that starts from a snapshot of the catalogue equals one that folded all records."""

import asyncio
import errno
import fcntl
import mmap
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Thread, get_ident
from types import SimpleNamespace
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
from recsys.log.protocol import Append, Log, LogUnavailable
from recsys.process.disk_budget import Level, Space
from recsys.process.open_log import open_log
from recsys.process.space_file import FILE
from serving.followers.followers import Followers
from serving.replica import catalogue_snapshot
from serving.replica.catalogue_snapshot import CatalogueSnapshot
from serving.request import Request
from serving.service import Service

pytestmark = pytest.mark.slow
NOW_MS = 1_790_000_000_000
_ITEMS = 2_000


def config_of(state: Path) -> Config:
    base = Config()
    serve = replace(base.serve, index="ivf", deadline_ms=600_000)
    shards = ParameterServerConfig(shards=1)
    return replace(base, state=str(state), serve=serve, parameter_server=shards)


class World:
    """A log with a catalogue and weights, and replicas that start from it."""

    def __init__(self, state: Path, blobs: dict[str, bytes]) -> None:
        self.config = config_of(state)
        self.sessions = MemorySessions()
        self.sessions.blobs = dict(blobs)
        self.log: Log = open_log(self.config)
        self.folder = state / "catalogue"

    def finished(self) -> list[Path]:
        """Snapshots; nothing else but locks is there."""
        folders = [path for path in self.folder.glob("*") if path not in self.locks()]
        assert not [path for path in folders if path.name.startswith(".")]
        return folders

    def locks(self) -> list[Path]:
        return [*self.folder.glob(".lock-*")]

    def forget(self) -> Path:
        """Removes the one snapshot that was written, and returns its lock."""
        (folder,), (lock,) = self.finished(), self.locks()
        shutil.rmtree(folder)
        return lock

    def replica(self, folds_all: bool = False, shards: Any = None) -> Service:
        """One that has caught up."""
        service = Service(self.config, self.log, self.sessions, lambda: NOW_MS, shards)
        if folds_all:
            service.live.followers.catalogue = None
        service.live.followers.catch_up(lambda: False)
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
        self.publish(*new[::-1])  # again, without a change
        self.publish(*(Item(time_ms=NOW_MS, item_id=f"v{n}", removed=True) for n in range(70, 90)))
        self.publish(Item(time_ms=NOW_MS, item_id="v80", fields={"author": "a1", "tags": ["t1"]}))
        self.learn(range(40, 140))


def follow(followers: Followers) -> None:
    while (batch := followers.read()).full:
        followers.apply(batch)


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
        return iter([await service.recommend(r, f"{n:032x}", False) for n, r in enumerate(requests)])

    listed = asyncio.run(ask())
    return [msgspec.msgpack.encode((answer.impression, answer.items)) for answer in listed]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """State that each test gets a copy of, and its sessions."""
    state = tmp_path_factory.mktemp("built")
    return state, build(config_of(state), _ITEMS, 1, NOW_MS).sessions


@pytest.fixture
def world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: tuple[Path, dict[str, bytes]]
) -> Iterator[World]:
    monkeypatch.setattr(catalogue_snapshot, "_LEAST", 100)
    state, blobs = built
    shutil.copytree(state, tmp_path, dirs_exist_ok=True)
    world = World(tmp_path, blobs)
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
        follow(service.live.followers)
    services.append(world.replica())
    after = answers(expected)
    assert after != before and expected.replica.step == STEP + 1
    for service in services:
        assert service.live.followers.catalogue is not None and not service.live.followers.catalogue.damaged
        assert answers(service) == after
        assert list(service.replica.catalogue.fields) == list(expected.replica.catalogue.fields)
        for key in np.unique(expected.replica.catalogue.keys).tolist():
            members = service.replica.groups.members(key).tolist()
            assert members == expected.replica.groups.members(key).tolist()


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
    assert service.live.followers.catalogue is not None and service.live.followers.catalogue.damaged == 1
    assert answers(service) == expected
    again = world.replica()
    assert again.live.followers.catalogue is not None and again.live.followers.catalogue.damaged == 0


def test_a_snapshot_that_lacks_files_is_not_used(world: World) -> None:
    world.replica()
    (folder,) = world.finished()
    (folder / "ids.npy").unlink()
    service = world.replica()
    assert service.live.followers.catalogue is not None and service.live.followers.catalogue.damaged == 1


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
    assert service.live.followers.catalogue is not None
    return service.live.followers.catalogue.damaged


@pytest.mark.parametrize("kind", ["empty", "header", "zip", "length"])
def test_damage_that_numpy_reports_otherwise_is_counted_and_replaced(world: World, kind: str) -> None:
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


def test_records_read_before_an_error_are_not_applied_over_a_newer_snapshot(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answers(world.replica())
    (folder,) = world.finished()
    aside = folder.rename(world.folder.parent / "aside")
    read = world.log.read

    def fail_once(topic: str, partition: int, offset: int, limit: int = 1) -> Any:
        if topic == DELTAS and aside.exists():
            aside.rename(folder)  # another replica has written it meanwhile
            raise LogUnavailable("away")
        return read(topic, partition, offset, limit)

    monkeypatch.setattr(world.log, "read", fail_once)
    service = Service(world.config, world.log, world.sessions, lambda: NOW_MS)
    with pytest.raises(LogUnavailable):
        service.live.followers.catch_up(lambda: False)
    service.live.followers.catch_up(lambda: False)
    assert is_mapped(service.replica.catalogue.keys) and answers(service) == expected
    assert service.replica.catalogue_offset == _ITEMS


def test_a_snapshot_that_another_wrote_just_before_the_lock_is_used(
    world: World, monkeypatch: pytest.MonkeyPatch, written: set[Path]
) -> None:
    world.replica()
    (folder,) = world.finished()
    aside = folder.rename(world.folder.parent / "aside")
    lock_now = CatalogueSnapshot._lock_now

    def lock(file: Any) -> bool:
        aside.rename(folder)
        return lock_now(file)

    monkeypatch.setattr(CatalogueSnapshot, "_lock_now", staticmethod(lock))
    written.clear()
    assert is_mapped(world.replica().replica.catalogue.keys)
    assert not written and world.finished() == [folder]


class Waiting:
    """Replicas that start in threads, and wait for another's snapshot."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self._world, self._threads, self._waiting = world, list[Thread](), set[int]()
        self.services = list[Service]()
        self.passed_s = 0.0  # beside real time
        clock = SimpleNamespace(monotonic=lambda: time.monotonic() + self.passed_s, sleep=self._sleep)
        monkeypatch.setattr(catalogue_snapshot, "time", clock)

    def _sleep(self, seconds: float) -> None:
        self._waiting.add(get_ident())
        time.sleep(seconds)

    def start(self, count: int) -> None:
        """Returns once all of them wait."""
        for _ in range(count):
            self._threads.append(Thread(target=self._start))
            self._threads[-1].start()
        while len(self._waiting) < count:
            assert all(thread.is_alive() for thread in self._threads)
            time.sleep(0.01)

    def _start(self) -> None:
        self.services.append(self._world.replica())

    def join(self) -> list[Service]:
        for thread in self._threads:
            thread.join()
        assert len(self.services) == len(self._threads)
        return self.services


@pytest.fixture
def waiting(world: World, monkeypatch: pytest.MonkeyPatch) -> Waiting:
    return Waiting(world, monkeypatch)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> set[Path]:
    """Folders into which replicas began to write."""
    folders, save = set[Path](), np.save

    def spy(path: Path, array: Any) -> None:
        folders.add(path.parent)
        save(path, array)

    monkeypatch.setattr(np, "save", spy)
    return folders


@contextmanager
def holder(lock: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds a lock, and hangs."""
    code = "import fcntl, sys, time; lock = open(sys.argv[1]); fcntl.flock(lock, fcntl.LOCK_EX)"
    command = [sys.executable, "-c", f"{code}; print(flush=True); time.sleep(600)", str(lock)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def test_one_replica_writes_and_those_that_start_with_it_use_its_snapshot(
    world: World, monkeypatch: pytest.MonkeyPatch, waiting: Waiting, written: set[Path]
) -> None:
    save = np.save

    def start_others(path: Path, array: Any) -> None:
        if not written:  # the log has more items for the others
            world.publish(*(Item(time_ms=NOW_MS, item_id=f"late{n}", fields={}) for n in range(5)))
            waiting.start(2)
        save(path, array)

    reads = reads_of_items(world)
    monkeypatch.setattr(np, "save", start_others)
    first = world.replica()
    services = [first, *waiting.join()]
    assert reads.count(0) == 1 and len(written) == 1 and len(world.finished()) == 1
    assert first.replica.catalogue_offset == _ITEMS
    for service in services:
        assert damaged(service) == 0 and is_mapped(service.replica.catalogue.keys)
        follow(service.live.followers)
        assert len(service.replica.catalogue) == len(service.replica.index) == _ITEMS + 5
        assert service.replica.index.name
    assert answers(services[0]) == answers(services[1]) == answers(services[2])


def test_where_the_first_cannot_write_one_of_the_others_does(
    world: World, monkeypatch: pytest.MonkeyPatch, waiting: Waiting, written: set[Path]
) -> None:
    save = np.save

    def fail_once(path: Path, array: Any) -> None:
        if not waiting.services and not written:
            written.add(path.parent)
            waiting.start(2)
            raise OSError(errno.ENOSPC, "No space left on device")
        save(path, array)

    reads = reads_of_items(world)
    monkeypatch.setattr(np, "save", fail_once)
    assert not is_mapped(world.replica().replica.catalogue.keys)
    assert all(is_mapped(service.replica.catalogue.keys) for service in waiting.join())
    assert reads.count(0) == 2 and len(written) == 2 and len(world.finished()) == 1


@pytest.mark.parametrize("killed", [False, True])
def test_where_the_holder_of_the_lock_dies_one_of_the_others_writes(
    world: World, waiting: Waiting, written: set[Path], killed: bool
) -> None:
    """Or gives it up soon, as one that only removes old snapshots."""
    world.replica()
    lock = world.forget()
    written.clear()
    reads = reads_of_items(world)
    if killed:
        with holder(lock) as process:
            waiting.start(3)
            process.kill()
    else:
        with lock.open() as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            waiting.start(3)
    assert all(is_mapped(service.replica.catalogue.keys) for service in waiting.join())
    assert reads.count(0) == 1 and len(written) == 1 and len(world.finished()) == 1


def test_a_holder_that_hangs_is_waited_for_no_longer_than_patience_lasts(
    world: World, waiting: Waiting
) -> None:
    world.replica()
    with holder(world.forget()):
        waiting.start(1)
        waiting.passed_s = catalogue_snapshot._PATIENCE_S
        (service,) = waiting.join()
        assert len(service.replica.catalogue) == _ITEMS and not world.finished()


def test_a_replica_does_not_wait_for_the_snapshot_of_another_definition(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.replica()
    (before,), (lock,) = world.finished(), world.locks()
    partial = world.folder / ".unfinished"
    partial.mkdir()
    monkeypatch.setattr(catalogue_snapshot, "_LOOK_S", -1.0)  # sleep raises ValueError
    world.config = replace(world.config, serve=replace(world.config.serve, index="flat"))
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        world.replica()
        assert before.exists() and partial.exists()
    assert len(world.locks()) == 2
    world.replica()  # now nothing is written
    assert len(world.finished()) == 1 and not before.exists() and len(world.locks()) == 1


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EIO])
def test_where_files_cannot_be_locked_a_replica_answers_and_warns(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    files = list[Any]()

    def flock(file: Any, how: int) -> None:
        files.append(file)
        raise OSError(code, "no locks")

    locks = SimpleNamespace(flock=flock, LOCK_EX=fcntl.LOCK_EX, LOCK_NB=fcntl.LOCK_NB)
    monkeypatch.setattr(catalogue_snapshot, "fcntl", locks)  # the log locks files, too
    service = world.replica()
    assert service.live.followers.ready and len(answers(service)) == 40 and not world.finished()
    assert files and all(file.closed for file in files)
    assert [line for line in caplog.messages if "no locks" in line] == [caplog.messages[-1]]


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
    (lock,) = world.locks()
    (world.folder / ".lock-0123").touch()
    world.replica()
    assert world.finished() == [own] and world.locks() == [lock]


def test_nothing_is_removed_while_a_replica_writes(world: World) -> None:
    world.replica()
    partial = world.folder / ".unfinished"
    partial.mkdir()
    (lock,) = world.locks()
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
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


def test_files_are_on_the_disk_before_they_count(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
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
    follow(expected.live.followers)
    assert answers(service) == answers(expected)


def test_packed_values_are_a_list() -> None:
    values: list[Any] = [{"a": "b"}, 7, "7", ["x", 1.5]]
    packed = PackedList(*_packed("values", values).values())
    assert list(packed) == values and packed[-1] == values[-1] and len(packed) == 4
    packed[1] = {}
    packed.append("new")
    assert [*packed] == [{"a": "b"}, {}, "7", ["x", 1.5], "new"] and packed[-5] == {"a": "b"}
    assert PackedList(*_packed("values", packed).values())[4] == "new"
    assert packed[2:] == packed[-3:] == ["7", ["x", 1.5], "new"] and "7" in packed and 7 not in packed
    with pytest.raises(IndexError):
        packed[5]
