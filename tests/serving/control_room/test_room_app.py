"""The control room over HTTP: what needs the key, what a browser is told, and that nothing else is given."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from serving.control_room.hub import Hub
from serving.control_room.room_app import WEB, build_room

KEY = "k" * 43
BEARER = {"authorization": f"Bearer {KEY}"}
ASKED: list[tuple[str, str]] = []


def inspect(kind: str, name: str) -> tuple[int, bytes]:
    ASKED.append((kind, name))
    return 404, b'{"error": "no such item"}'


@asynccontextmanager
async def client(key: str = KEY) -> AsyncIterator[httpx.AsyncClient]:
    app = build_room(Hub(lambda: b"{}", 0.01), lambda: b"{}", inspect, key)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://room") as its:
        yield its


@pytest.mark.parametrize(
    "header", [None, "", "Bearer ", "Bearer x", f"bearer {KEY}", f"Bearer {KEY} ", "Bearer \xfc"]
)
@pytest.mark.parametrize("path", ["/control/api/stream", "/control/api/items/v1", "/control/api/users/u%2F1"])
def test_everything_but_the_page_needs_the_key(path: str, header: str | None) -> None:
    async def go() -> None:
        async with client() as its:
            headers = {} if header is None else {"authorization": header.encode("latin-1")}
            answer = await its.get(path, headers=headers)  # type: ignore[arg-type]
            assert answer.status_code == 401 and "control.key" in answer.json()["error"]
            assert answer.headers["cache-control"] == "no-store"

    ASKED.clear()
    asyncio.run(go())
    assert not ASKED


async def test_a_page_with_a_name_of_its_own_is_refused() -> None:
    app = build_room(Hub(lambda: b"{}"), lambda: b"{}", inspect, KEY, lambda host: host == "room:8001")
    transport = httpx.ASGITransport(app=app)
    for host, status in (("room:8001", 200), ("evil.example", 421)):
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as its:
            for path in ("/control", "/healthz"):
                assert (await its.get(path)).status_code == status


async def test_an_empty_key_opens_nothing() -> None:
    async with client("") as its:
        for said in ("Bearer ", "", "Bearer"):
            answer = await its.get("/control/api/items/v1", headers={"authorization": said})
            assert answer.status_code == 401


def test_an_item_or_a_user_is_asked_of_the_api_by_any_id() -> None:
    async def go() -> None:
        async with client() as its:
            for path in ("items/v1", "users/a%2Fb%20c"):
                answer = await its.get(f"/control/api/{path}", headers=BEARER)
                assert (answer.status_code, answer.json()) == (404, {"error": "no such item"})
            assert (await its.get("/control/api/secrets/x", headers=BEARER)).status_code == 404
            assert (await its.get(f"/control/api/items/{'x' * 300}", headers=BEARER)).status_code == 404

    ASKED.clear()
    asyncio.run(go())
    assert ASKED == [("items", "v1"), ("users", "a/b c")]


async def test_the_page_comes_whole_and_may_load_nothing_from_elsewhere() -> None:
    async with client() as its:
        page = await its.get("/control")
        policy = page.headers["content-security-policy"]
        assert page.status_code == 200 and "default-src 'none'" in policy and "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy and page.headers["referrer-policy"] == "no-referrer"
        for file in WEB.iterdir():
            answer = await its.get(f"/control/{file.name}")
            assert answer.status_code == 200 and answer.content == file.read_bytes()
            assert "http://" not in answer.text.replace("http://www.w3.org/2000/svg", "")
        for path in ("nothing.js", "..%2froom_app.py", "%2e%2e/control_room/hub.py", "index"):
            assert (await its.get(f"/control/{path}")).status_code == 404
        assert (await its.get("/")).headers["location"] == "/control"
        assert (await its.get("/healthz")).json() == {"status": "ok"}


def test_the_page_has_no_inline_script_and_no_inline_style() -> None:
    page = (WEB / "index.html").read_text()
    assert "style=" not in page and "<style" not in page and page.count("<script") == 1
    assert 'type="module" src="/control/main.js"' in page and " on" + "click" not in page
    for file in WEB.glob("*.js"):
        assert "innerHTML" not in file.read_text() and "eval(" not in file.read_text()


async def test_curves_that_take_their_time_hold_up_nobody_else() -> None:
    goes_on = threading.Event()
    app = build_room(Hub(lambda: b"{}", 0.01), lambda: b"{}" if goes_on.wait(60) else b"", inspect, KEY)
    sent: list[str] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message["type"])

    headers = [(b"authorization", f"Bearer {KEY}".encode())]
    scope = {
        "type": "http", "method": "GET", "path": "/control/api/stream", "headers": headers,
        "query_string": b"", "asgi": {"version": "3.0", "spec_version": "2.4"},
    }  # fmt: skip
    left = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await left.wait()
        return {"type": "http.disconnect"}

    stream = asyncio.create_task(app(scope, receive, send))  # type: ignore[arg-type]
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://room") as its:
        await asyncio.sleep(0.05)
        began_s = time.monotonic()
        assert (await its.get("/healthz")).status_code == 200
        assert time.monotonic() - began_s < 10 and "http.response.body" not in sent
    goes_on.set()
    stream.cancel()
