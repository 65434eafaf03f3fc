"""``recsys bench stamp``: checks that every answer is of one version while everything changes.

In process: several clients ask a service whose follower reads in its own thread. Over HTTP: the same behind
uvicorn and sockets. Both in the canary's world, where an answer reveals each version that it was made from.
Recomputed: answers of a run of all parts, checked against its log.
"""

import asyncio
import socket
import tempfile
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import msgspec
import torch

from benchmarks.answers.reconstruction_run import explain_run
from benchmarks.answers.versioned_oracle import Oracle, Watch
from benchmarks.answers.versioned_world import NOW_MS, ImpressionlessLog, VersionPublisher, versioned_config
from benchmarks.harness.memory_sessions import MemorySessions
from recsys.events.event_types import Stamp
from recsys.events.hashing import Id, uniform
from recsys.process.open_log import create_topics
from serving.http_app import build_app
from serving.request import Answer, Request
from serving.retrieval.retrieval_client import RetrievalClient
from serving.retrieval.retrieval_service import RetrievalService
from serving.service import Service

_CLIENTS: Final = 4
# Requests between published versions.
EVERY: Final = {"step": 24, "session": 56, "states": 88, "items": 144, "policy": 304, "epoch": 2_400}


class YieldingSessions(MemorySessions):
    """Yields to the event loop in each read, as a store over a socket does."""

    async def get(self, user_id: Id) -> bytes | None:
        await asyncio.sleep(0)
        return await super().get(user_id)


@dataclass
class VersionedService:
    """A service in the canary's world, in a folder, optionally with retrieval shards."""

    service: Service
    canary: VersionPublisher
    oracle: Oracle
    seed: int = 0
    every: Mapping[str, int] = field(default_factory=lambda: EVERY)
    asked: int = 0
    shards: Sequence[RetrievalService] = ()

    @staticmethod
    def in_folder(
        folder: Path, seed: int = 0, every: Mapping[str, int] = EVERY, shards: int = 0
    ) -> "VersionedService":
        """Publishes everything once; later versions follow as requests are made."""
        config, log, sessions = versioned_config(folder), ImpressionlessLog(), YieldingSessions()
        create_topics(log, config)
        canary = VersionPublisher(config, log, sessions.blobs)
        canary.publish_all()
        services = [RetrievalService(config, log, n, shards, lambda: NOW_MS) for n in range(shards)]
        asked = RetrievalClient([service.search for service in services]) if services else None
        service = Service(config, log, sessions, lambda: NOW_MS, asked)
        return VersionedService(service, canary, Oracle(config), seed, every, shards=services)

    def publish_due(self) -> None:
        """Publishes the versions that are due after the next request."""
        self.asked += 1
        world, n = self.canary, self.asked + self.seed
        due = {name for name, every in self.every.items() if n % every == 0}
        if "session" in due:
            world.publish_session(f"u{n // self.every['session'] % len(world.users)}")
        if "states" in due:
            world.publish_states()
        if "items" in due:
            world.publish_items()
        if "policy" in due:
            world.publish_policy()
        if "epoch" in due:
            world.publish_epoch()
        elif "step" in due:
            world.publish_step()

    def user(self, n: int) -> str:
        return f"u{int(len(self.canary.users) * uniform(self.seed, n))}"


async def in_process(target: VersionedService, requests: int, clients: int = _CLIENTS) -> list[Watch]:
    """Asks the service directly; applied updates share its event loop, as in a replica."""
    watches = [Watch(target.oracle) for _ in range(clients)]
    for shard in target.shards:
        await shard.start()
        await shard.thread.caught_up(10.0)
    await target.service.start()
    try:
        while not target.service.ready and not target.service.failure:
            await asyncio.sleep(0.001)

        async def client(watch: Watch) -> None:
            while target.asked < requests:
                target.publish_due()
                user = target.user(target.asked)
                answer = await target.service.recommend(Request(user, n=8))
                _see(watch, user, answer)

        await asyncio.gather(*map(client, watches))
    finally:
        await target.service.stop()
        for shard in target.shards:
            await shard.stop()
    return watches


def _see(watch: Watch, user: str, answer: Answer) -> None:
    items = [(item.item_id, item.score, item.sources, item.fields) for item in answer.items]
    watch.see(user, answer.stamp, items, answer.degraded, answer.impression.features)


async def over_http(target: VersionedService, requests: int, clients: int = _CLIENTS) -> list[Watch]:
    """Asks over kept-alive loopback sockets; a uvicorn server runs on the service's loop."""
    import uvicorn

    watches = [Watch(target.oracle) for _ in range(clients)]
    # asyncio sends small writes at once only on a socket that is declared as TCP.
    door = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    door.bind(("127.0.0.1", 0))
    settings = uvicorn.Config(build_app(target.service, lambda: ""), log_level="warning")
    server = uvicorn.Server(settings)
    serving = asyncio.create_task(server.serve([door]))
    try:
        while not (server.started and target.service.ready) and not target.service.failure:
            await asyncio.sleep(0.01)

        async def client(watch: Watch) -> None:
            url = f"http://127.0.0.1:{door.getsockname()[1]}"
            async with httpx.AsyncClient(base_url=url, timeout=60.0) as http:
                while target.asked < requests:
                    target.publish_due()
                    user = target.user(target.asked)
                    body = {"user_id": user, "n": 8}
                    _see_http(watch, user, await http.post("/v1/recommend", json=body))

        await asyncio.gather(*map(client, watches))
    finally:
        server.should_exit = True
        await serving
    return watches


def _see_http(watch: Watch, user: str, response: httpx.Response) -> None:
    if response.status_code != 200:
        watch.fail(f"{response.status_code} {response.text[:200]!r}")
        return
    answer = response.json()
    stamp = msgspec.convert(answer["stamp"], Stamp)
    items = [(i["item_id"], i["score"], i["sources"], i["fields"]) for i in answer["items"]]
    watch.see(user, stamp, items, answer["degraded"])


def counts(target: VersionedService, watches: Sequence[Watch], took_s: float) -> dict[str, Any]:
    """Counts of all clients, and the number of published versions."""
    world = target.canary
    names = ("requests", "mixed", "failed", "went_back")
    figures: dict[str, Any] = {name: sum(getattr(w, name) for w in watches) for name in names}
    published = {"epochs": world.epoch, "steps": world.steps, "catalogues": world.items}
    published |= {"item_states": world.states, "policies": world.policies}
    published |= {"sessions": sum(world.users.values())}
    first = [line for watch in watches for line in watch.first][:5]
    figures |= {"seconds": round(took_s, 1), "published": published}
    return figures | ({"first": first} if first else {})


def measure_stamp(requests: int, http: int, explained: int, seed: int) -> dict[str, Any]:
    """Figures of all three parts; 0 leaves one out."""
    torch.set_num_threads(1)  # as in a replica
    figures: dict[str, Any] = {}
    ways: dict[str, tuple[int, Callable[..., Coroutine[Any, Any, list[Watch]]]]] = {
        "in_process": (requests, in_process),
        "over_http": (http, over_http),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, (count, way) in ways.items():
            if count:
                target = VersionedService.in_folder(Path(folder) / name, seed)
                began = time.monotonic()
                watches = asyncio.run(way(target, count))
                figures[name] = counts(target, watches, time.monotonic() - began)
        if explained:
            figures["of_a_run"] = explain_run(Path(folder) / "run", explained, seed)
    parts = figures.values()
    names = ("requests", "mixed", "failed", "went_back", "explained", "equal")
    total = {name: sum(part.get(name, 0) for part in parts) for name in names}
    return {"figures": total | figures}
