"""What the routes of Gorse and Metarank have in common: who is let in, and changes of items."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from plugins.gorse_and_metarank import shared_handlers
from recsys.events.records import ITEMS
from recsys.log.protocol import Append
from tests.support.serving.gorse_cases import API, EXAMPLES, FEEDBACK, ROWS
from tests.support.serving.service_harness import COMPAT, World, item, living


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, compat=COMPAT)


STRANGE = [  # what a browser says for a page of elsewhere, of another port, and an image of either
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"origin": "http://test:9000"},
    {"origin": "null"},
]


@pytest.mark.parametrize("strange", STRANGE)
async def test_a_page_of_another_origin_changes_nothing(tmp_path: Path, strange: dict[str, str]) -> None:
    async with living(World(tmp_path, compat=COMPAT)) as w:
        effects = [one for one in EXAMPLES if one[3] == ROWS or "/api/recommend" in one[1]]
        assert len(effects) > 15
        for method, path, body, _ in effects:
            asked = await w.client.request(method, path, json=body, headers=API | strange)
            assert asked.status_code == 403 and "a page of" in asked.json()["error"], path
        await w.written()
        assert w.events() == [] and w.log.end("items", 0) == 60


async def test_a_page_of_ours_and_a_typed_address_are_let_in(world: World) -> None:
    async with living(world) as w:
        ours = {"origin": "http://localhost", "sec-fetch-site": "same-origin"}
        sent = await w.client.post("/api/feedback", json=[FEEDBACK], headers=ours)
        typed = await w.client.get("/api/recommend/bob", headers={"sec-fetch-site": "none"})
        assert (sent.status_code, typed.status_code) == (200, 200)


async def test_changes_of_one_item_at_once_lose_nothing(world: World) -> None:
    async with living(world) as w:
        paths = [f"/api/item/v1/category/c{n}" for n in range(8)]
        await asyncio.gather(*(w.client.put(path, headers=API) for path in paths))
        found = (await w.client.get("/api/item/v1")).json()["Categories"]
        assert sorted(found) == sorted(["t1", *(f"c{n}" for n in range(8))])


@contextmanager
def held(w: World) -> Iterator[threading.Event]:
    """The replica reads nothing of the log until the event is set."""
    go, read = threading.Event(), w.service.live.followers.read

    def late() -> Any:
        go.wait(10)
        return read()

    w.service.live.followers.read = late  # type: ignore[method-assign]
    try:
        yield go
    finally:
        go.set()


async def test_a_change_keeps_what_another_replica_changed_before_it(world: World) -> None:
    async with living(world) as w:
        with held(w) as go:
            await asyncio.sleep(0.1)  # what it was reading is applied
            its = item(1)
            w.put(msgspec.structs.replace(its, fields=its.fields | {"price": 7}))
            asked = asyncio.create_task(w.client.put("/api/item/v1/category/films", headers=API))
            await asyncio.sleep(0.1)
            go.set()
            assert (await asked).status_code == 200
        found = (await w.client.get("/api/item/v1")).json()
        assert found["Categories"] == ["t1", "films"] and found["Labels"]["price"] == 7


async def test_a_replica_that_is_behind_changes_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_handlers, "_APPLIED_S", 0.2)

    async with living(world) as w:
        with held(w):
            await asyncio.sleep(0.1)
            w.put(item(1))
            asked = await w.client.put("/api/item/v1/category/films", headers=API)
            assert asked.status_code == 503 and "behind" in asked.json()["error"]
            assert w.log.end(ITEMS, 0) == 61
        w.log.append(ITEMS, [Append(0, b"", b"unreadable")])  # is passed over, not waited for
        await asyncio.sleep(0.1)
        asked = await w.client.put("/api/item/v1/category/films", headers=API)
        assert asked.status_code == 200 and w.log.end(ITEMS, 0) == 63
