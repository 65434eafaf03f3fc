"""A service over a log and sessions in memory, and an HTTP client for it: no Ray, no broker."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from benchmarks.harness.memory_sessions import MemorySessions
from plugins.gorse_and_metarank import gorse_routes, metarank_routes
from recsys.config.part_configs import CompatConfig
from recsys.config.safety_config import AccessConfig, SafetyConfig
from recsys.config.system_config import Config, ServeConfig
from recsys.events.event_types import Item, decode, encode
from recsys.events.records import EVENTS, ITEMS
from recsys.log.protocol import Append, MemoryLog
from recsys.process.open_log import create_topics
from runtime.jobs.key_requests import add_key, read_keys
from serving.access.key_files import TOKEN_KEYS
from serving.http.added_routes import AddedRoutes
from serving.http_app import build_app
from serving.service import Service
from serving.sessions.session_loop import SessionLoop
from serving.sessions.session_store import StoreUnavailable

NOW_MS = 1_790_000_000_000
KEY = "the admin key"
ADMIN = {"X-Admin-Key": KEY}
COMPAT = CompatConfig(gorse=True, metarank=True)  # the routes of Gorse and Metarank, that are off


def compat_routes() -> AddedRoutes:
    """How calls of the routes of Gorse and Metarank are admitted."""
    added = AddedRoutes()
    gorse_routes.admit(added)
    metarank_routes.admit(added)
    return added


class World:
    """A service with its log, its sessions and an HTTP client."""

    def __init__(
        self, folder: Path, items: int = 60, serve: ServeConfig | None = None,
        compat: CompatConfig | None = None, access: AccessConfig | None = None,
        safety: SafetyConfig | None = None,
    ) -> None:  # fmt: skip
        self.config = replace(
            Config(),
            state=str(folder),
            serve=serve or ServeConfig(),
            compat=compat or CompatConfig(),
            access=access or AccessConfig(),
            safety=safety or SafetyConfig(),
        )
        (folder / "run").mkdir(exist_ok=True)
        (folder / "run" / TOKEN_KEYS).write_text("the secret of tokens")
        self.log: MemoryLog = MemoryLog()
        create_topics(self.log, self.config)
        self.put(*(item(i) for i in range(items)))
        self.sessions = MemorySessions()
        self.now_ms = NOW_MS
        self.restart()
        self.fold = SessionLoop(self.log, self.sessions, self.service.features, now_ms=lambda: self.now_ms)
        self.client: httpx.AsyncClient

    def restart(self) -> None:
        """Another service over the same log, folder and sessions."""
        self.service = Service(self.config, self.log, self.sessions, lambda: self.now_ms)

    def put(self, *items: Item) -> None:
        self.log.append(ITEMS, [Append(0, b"", encode(item)) for item in items])

    def events(self) -> list[Any]:
        return [
            decode(record.value)
            for p in range(self.log.partitions(EVENTS))
            for record in self.log.read(EVENTS, p, 0, 10_000)
        ]

    async def add_key(self, *scopes: str, **options: Any) -> str:
        """Text of a new API key that the replica has read."""
        text = add_key(self.log, "test", scopes, self.now_ms, **options)
        count = len(read_keys(self.log))
        for _ in range(500):
            if len(self.service.live.control.keyring.keys()) == count:
                return text
            await asyncio.sleep(0.01)
        raise AssertionError("the replica doesn't read the key")

    async def recommend(self, **body: Any) -> dict[str, Any]:
        answer = await self.client.post("/v1/recommend", json={"user_id": "u1"} | body)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def written(self) -> None:
        """Waits until the writer has nothing left."""
        for _ in range(200):
            if not self.service.writer.kept_bytes:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("the writer isn't done")


def item(i: int) -> Item:
    fields = {
        "author": f"a{i % 7}",
        "tags": [f"t{i % 5}", f"s{i % 3}"],
        "duration_ms": 10_000,
        "topic": f"t{i % 5}",
    }
    return Item(time_ms=NOW_MS - 1000 * i, item_id=f"v{i}", fields=fields)


def view(request_id: str, item_id: str, event_id: str, **more: Any) -> dict[str, Any]:
    return {
        "type": "engagement",
        "time_ms": NOW_MS,
        "request_id": request_id,
        "user_id": "u1",
        "item_id": item_id,
        "kind": "view",
        "watch_ms": 1_000,
        "event_id": event_id,
    } | more


@asynccontextmanager
async def living(world: World) -> AsyncIterator[World]:
    app = build_app(world.service, lambda: KEY)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            world.client = client
            for _ in range(500):
                if world.service.live.followers.ready:
                    break
                await asyncio.sleep(0.01)
            yield world


def run(world: World, scenario: Callable[[World], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with living(world):
            await scenario(world)

    asyncio.run(whole())


class Slow(MemorySessions):
    async def get(self, user_id: Any) -> bytes | None:
        await asyncio.sleep(10)
        return None


class Broken(MemorySessions):
    async def get(self, user_id: Any) -> bytes | None:
        raise StoreUnavailable("gone")
