"""``recsys bench stamp``: is every answer of one version, while everything changes under it?

In process: a service whose follower reads in its thread, asked one request after the other by several
clients at once. Over HTTP: the same behind uvicorn and sockets. Both in the canary's world, where an answer
shows each version that it was made from. AnswerCheck: answers of a run of all parts, made again from its log.
"""

import asyncio
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import torch

from benchmarks.answers.reconstruction_run import explain_run
from benchmarks.answers.versioned_oracle import Oracle, Watch
from benchmarks.answers.versioned_world import NOW_MS, Canary, CanaryLog, canary_config
from recsys.events.event_types import Stamp
from recsys.events.hashing import Id, uniform
from recsys.process.open_log import create_topics
from serving.request import Answer, Request
from serving.retrieval.retrieval_client import Shards
from serving.retrieval.retrieval_service import RetrievalService
from serving.service import Service
from serving.sessions.session_store import MemorySessions

_CLIENTS: Final = 4
# After how many requests the next version of each is published.
EVERY: Final = {
    "step": 24,
    "session": 56,
    "states": 88,
    "items": 144,
    "policy": 304,
    "epoch": 2_400,
}


class YieldingSessions(MemorySessions):
    """Gives the loop away in each read, as a store over a socket does: others' turns come in between."""

    async def get(self, user_id: Id) -> bytes | None:
        await asyncio.sleep(0)
        return await super().get(user_id)


@dataclass
class Bird:
    """A service in the canary's world, in a folder; with shards of retrieval, if it has any."""

    service: Service
    canary: Canary
    oracle: Oracle
    seed: int = 0
    every: Mapping[str, int] = field(default_factory=lambda: EVERY)
    asked: int = 0
    shards: Sequence[RetrievalService] = ()

    @staticmethod
    def in_folder(
        folder: Path, seed: int = 0, every: Mapping[str, int] = EVERY, shards: int = 0
    ) -> "Bird":
        """All that is there is published once; more comes as requests are made."""
        config, log, sessions = canary_config(folder), CanaryLog(), YieldingSessions()
        create_topics(log, config)
        canary = Canary(config, log, sessions.blobs)
        canary.publish_all()
        its = [RetrievalService(config, log, n, shards, lambda: NOW_MS) for n in range(shards)]
        asked = Shards([one.search for one in its]) if its else None
        service = Service(config, log, sessions, lambda: NOW_MS, asked)
        return Bird(service, canary, Oracle(config), seed, every, shards=its)

    def sing(self) -> None:
        """Publishes what is due after the next request."""
        self.asked += 1
        its, n = self.canary, self.asked + self.seed
        due = {name for name, every in self.every.items() if n % every == 0}
        if "session" in due:
            its.publish_session(f"u{n // self.every['session'] % len(its.users)}")
        if "states" in due:
            its.publish_states()
        if "items" in due:
            its.publish_items()
        if "policy" in due:
            its.publish_policy()
        if "epoch" in due:
            its.publish_epoch()
        elif "step" in due:
            its.publish_step()

    def user(self, n: int) -> str:
        return f"u{int(len(self.canary.users) * uniform(self.seed, n))}"


async def in_process(bird: Bird, requests: int, clients: int = _CLIENTS) -> list[Watch]:
    """Asks the service itself; the event loop is shared with what is applied, as in a replica."""
    watches = [Watch(bird.oracle) for _ in range(clients)]
    for shard in bird.shards:
        await shard.start()
        await shard.caught_up(10.0)
    await bird.service.start()
    try:
        while not bird.service.ready and not bird.service.failure:
            await asyncio.sleep(0.001)

        async def client(watch: Watch) -> None:
            while bird.asked < requests:
                bird.sing()
                user = bird.user(bird.asked)
                answer = await bird.service.recommend(Request(user, n=8))
                _see(watch, user, answer)

        await asyncio.gather(*map(client, watches))
    finally:
        await bird.service.stop()
        for shard in bird.shards:
            await shard.stop()
    return watches


def _see(watch: Watch, user: str, answer: Answer) -> None:
    items = [(item.item_id, item.score, item.sources, item.fields) for item in answer.items]
    watch.see(user, answer.stamp, items, answer.degraded, answer.impression.features)


class _Said(msgspec.Struct):
    items: list[dict[str, Any]]
    stamp: Stamp
    degraded: list[str]


async def over_http(bird: Bird, requests: int, clients: int = _CLIENTS) -> list[Watch]:
    """Asks over sockets of loopback, kept open, a uvicorn server on the service's loop."""
    import uvicorn

    from serving.http_app import build_app

    watches = [Watch(bird.oracle) for _ in range(clients)]
    # asyncio sends at once what is small only where a socket says that it is TCP.
    door = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    door.bind(("127.0.0.1", 0))
    settings = uvicorn.Config(build_app(bird.service, lambda: ""), log_level="warning")
    server = uvicorn.Server(settings)
    serving = asyncio.create_task(server.serve([door]))
    try:
        while not (server.started and bird.service.ready) and not bird.service.failure:
            await asyncio.sleep(0.01)

        async def client(watch: Watch) -> None:
            reader, writer = await asyncio.open_connection(*door.getsockname())
            while bird.asked < requests:
                bird.sing()
                user = bird.user(bird.asked)
                await _ask(reader, writer, user, watch)
            writer.close()

        await asyncio.gather(*map(client, watches))
    finally:
        server.should_exit = True
        await serving
    return watches


async def _ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, user: str, watch: Watch
) -> None:
    body = msgspec.json.encode({"user_id": user, "n": 8})
    writer.write(b"POST /v1/recommend HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                 b"content-length: %d\r\n\r\n%b" % (len(body), body))  # fmt: skip
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(head.partition("content-length:")[2].split()[0])
    answer = await reader.readexactly(length)
    if " 200 " not in head.partition("\r\n")[0]:
        watch.fail(f"{head.partition(chr(13))[0]} {answer[:200]!r}")
        return
    said = msgspec.json.decode(answer, type=_Said)
    items = [(its["item_id"], its["score"], its["sources"], its["fields"]) for its in said.items]
    watch.see(user, said.stamp, items, said.degraded)


def counts(bird: Bird, watches: Sequence[Watch], took_s: float) -> dict[str, Any]:
    """What was seen, and how many versions there were."""
    its = bird.canary
    names = ("requests", "mixed", "failed", "went_back")
    found: dict[str, Any] = {name: sum(getattr(w, name) for w in watches) for name in names}
    published = {"epochs": its.epoch, "steps": its.steps, "catalogues": its.items}
    published |= {"item_states": its.states, "policies": its.policies}
    published |= {"sessions": sum(its.users.values())}
    first = [line for watch in watches for line in watch.first][:5]
    found |= {"seconds": round(took_s, 1), "published": published}
    return found | ({"first": first} if first else {})


def measure_stamp(requests: int, http: int, explained: int, seed: int) -> dict[str, Any]:
    """The figures of all three; 0 leaves one out."""
    torch.set_num_threads(1)  # as a replica has it
    figures: dict[str, Any] = {}
    ways: dict[str, tuple[int, Callable[[Bird, int], Awaitable[list[Watch]]]]] = {
        "in_process": (requests, in_process),
        "over_http": (http, over_http),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, (count, way) in ways.items():
            if count:
                bird = Bird.in_folder(Path(folder) / name, seed)
                began = time.monotonic()
                watches = asyncio.run(way(bird, count))  # type: ignore[arg-type]
                figures[name] = counts(bird, watches, time.monotonic() - began)
        if explained:
            figures["of_a_run"] = explain_run(Path(folder) / "run", explained, seed)
    parts = figures.values()
    names = ("requests", "mixed", "failed", "went_back", "explained", "equal")
    total = {name: sum(part.get(name, 0) for part in parts) for name in names}
    return {"figures": total | figures}
