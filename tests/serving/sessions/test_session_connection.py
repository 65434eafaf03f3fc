"""The one connection that requests read their sessions over: its answers in pieces, late, wrong, or none."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from serving.sessions import session_connection as session_line
from serving.sessions.session_connection import Address, LineSessions, address_of, sessions_at
from serving.sessions.session_store import RedisSessions, StoreUnavailable

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def asked_for(user_id: str) -> bytes:
    key = f"session:{user_id}".encode()
    return b"*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n" % (len(key), key)


def against(serve: Serve, scenario: Callable[[LineSessions], Awaitable[None]]) -> None:
    """Runs a scenario with a store that is nothing but ``serve``, called for each connection."""

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        reader = LineSessions(Address("127.0.0.1", server.sockets[0].getsockname()[1], ()))
        try:
            await asyncio.wait_for(scenario(reader), 20)
        finally:
            await reader.close()
            server.close()

    uvloop.run(run())  # as in a replica: its transports aren't asyncio's


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("redis://h", Address("h", 6379, ())),
        ("redis://h:7/0", Address("h", 7, ())),
        ("redis://h:7/3", Address("h", 7, ((b"SELECT", b"3"),))),
        ("redis://:p%40ss@h:7", Address("h", 7, ((b"AUTH", b"p@ss"),))),
        ("redis://me:p@h:7/1", Address("h", 7, ((b"AUTH", b"me", b"p"), (b"SELECT", b"1")))),
        ("rediss://h:7", None),
        ("unix:///tmp/socket", None),
        ("redis://h:7/0?socket_timeout=3", None),
    ],
)
def test_plain_urls_are_read_and_the_others_left_to_redis_py(
    url: str, found: Address | None
) -> None:
    assert address_of(url) == found
    assert isinstance(sessions_at(url), RedisSessions if found is None else LineSessions)


def test_an_address_shows_no_secret() -> None:
    assert repr(address_of("redis://me:secret@h:7/1")) == "h:7"


def test_answers_go_to_who_asked_in_order_however_they_are_cut() -> None:
    large = bytes(range(256)) * 40
    said = b"$%d\r\n%s\r\n$-1\r\n$0\r\n\r\n" % (len(large), large)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wanted = asked_for("one") + asked_for("two") + asked_for("three")
        assert await reader.readexactly(len(wanted)) == wanted
        for at in range(0, len(said), 997):
            writer.write(said[at : at + 997])
            await writer.drain()
            await asyncio.sleep(0)

    async def scenario(sessions: LineSessions) -> None:
        found = await asyncio.gather(*(sessions.get(u) for u in ("one", "two", "three")))
        assert found == [large, None, b""]

    against(serve, scenario)


def test_who_left_takes_no_answer_of_another() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(asked_for("a") + asked_for("b") + asked_for("c")))
        writer.write(b"$1\r\na\r\n$1\r\nb\r\n$1\r\nc\r\n")

    async def scenario(sessions: LineSessions) -> None:
        first = asyncio.ensure_future(sessions.get("a"))
        while sessions._line is None or not sessions._line._waiting:
            await asyncio.sleep(0.001)  # until the first has asked
        gone, last = asyncio.ensure_future(sessions.get("b")), sessions.get("c")
        gone.cancel()
        assert await first == b"a" and await last == b"c"

    against(serve, scenario)


def test_what_is_refused_or_broken_off_fails_and_the_next_connects_anew() -> None:
    lives = iter([b"-ERR no\r\n", b"$5\r\nab", b"nonsense\r\n$1\r\na\r\n", b"$2\r\nok\r\n"])

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(asked_for("u")))
        writer.write(next(lives))
        await writer.drain()
        writer.close()

    async def scenario(sessions: LineSessions) -> None:
        with pytest.raises(StoreUnavailable, match="ERR no"):
            await sessions.get("u")
        await asyncio.sleep(0.02)
        with pytest.raises(StoreUnavailable, match="closed"):
            await sessions.get("u")
        with pytest.raises(StoreUnavailable, match="onsense"):
            await sessions.get("u")  # no such store at all
        await asyncio.sleep(0.02)
        assert await sessions.get("u") == b"ok"

    against(serve, scenario)


def test_a_connection_that_has_gone_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_line, "READ_TIMEOUT_S", 0.05)
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        silent = connections == 1
        while await reader.read(1000):
            if not silent:
                writer.write(b"$2\r\nok\r\n")

    async def scenario(sessions: LineSessions) -> None:
        lost = asyncio.ensure_future(sessions.get("u"))
        await asyncio.sleep(0.08)
        assert await sessions.get("u") == b"ok"
        with pytest.raises(StoreUnavailable):
            await lost
        assert connections == 2

    against(serve, scenario)


def test_a_store_that_is_not_there_is_said_to_be_to_all_who_ask() -> None:
    async def run() -> None:
        sessions = LineSessions(Address("127.0.0.1", 1, ()))
        found = await asyncio.gather(*(sessions.get("u") for _ in range(3)), return_exceptions=True)
        assert [type(one) for one in found] == [StoreUnavailable] * 3
        await sessions.close()

    asyncio.run(run())
