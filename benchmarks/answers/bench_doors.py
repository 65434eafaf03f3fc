"""Doors of one replica, with its whole app in this process: processor time of hostile bodies, lists beside
slow uploads, and one event sent many times at once."""

import asyncio
import gc
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import httpx

from benchmarks.harness.local_system import START_MS, LocalSystem, small_config
from recsys.config.safety_config import DoorsConfig
from recsys.events.event_types import Item
from serving.http_app import build_app

_MOST: Final = 999_900  # bytes of a hostile body
_REPEATS: Final = 20


def _filled(start: bytes, filler: bytes, end: bytes = b"]}") -> bytes:
    return start + filler * ((_MOST - len(start) - len(end)) // len(filler)) + end


_EVENTS: Final = b'{"events": ['
HOSTILE: Final = {
    "quotes": _filled(_EVENTS, b'"'),
    "unclosed string": _filled(_EVENTS + b'"', b"a"),
    "escaped quotes": _filled(_EVENTS + b'"', b'\\"'),
    "backslashes": _filled(_EVENTS + b'"', b"\\\\"),
    "quote, comma": _filled(_EVENTS, b'",'),
    "open brackets": _filled(_EVENTS, b"["),
    "nested, closed": _EVENTS + b"[" * 490_000 + b"]" * 490_000 + b"]}",
    "empty lists": _filled(_EVENTS + b"[NaN", b",[]", b"]]}"),
    "NaN": _filled(_EVENTS + b"NaN", b",NaN"),
    "digits": _filled(_EVENTS + b"NaN,", b"9"),
    "spaces": _filled(_EVENTS + b"NaN]", b" ", b"x"),
    "distinct fields": b'{"f": 0' + b"".join(b',"%d":0' % n for n in range(90_000)) + b"}",
    "many events": _filled(_EVENTS + b"0", b",0"),
}


def measure_doors(lists: int, slow: int) -> dict[str, Any]:
    """Figures of each door. ``slow``: uploads that never end, while so many lists are asked for."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            config = replace(small_config(Path(folder)), doors=DoorsConfig(body_s=600))
            return asyncio.run(_measure(LocalSystem(config), lists, slow))
    finally:
        gc.unfreeze()


async def _measure(system: LocalSystem, lists: int, slow: int) -> dict[str, Any]:
    system.publish([Item(time_ms=START_MS, item_id=f"v{n}") for n in range(500)])
    app = build_app(system.service, lambda: "")
    async with app.router.lifespan_context(app):
        while not system.service.ready:
            await asyncio.sleep(0.01)
        gc.freeze()  # as in a replica: else a collection reads all that the imports made
        async with _client(app, "192.0.2.1") as hostile, _client(app, "198.51.100.1") as honest:
            return {
                "hostile_cpu_ms": {n: await _cost(hostile, body) for n, body in HOSTILE.items()},
                "slow": await _beside_slow(hostile, honest, lists, slow),
                "repeats": await _repeats(honest),
            }


def _client(app: Any, address: str) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=app, client=(address, 1))
    headers = {"content-type": "application/json"}
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=headers)


async def _cost(client: httpx.AsyncClient, body: bytes) -> dict[str, float]:
    began = time.thread_time()
    answer = await client.post("/v1/events", content=body)
    return {"ms": round(1000 * (time.thread_time() - began), 1), "status": answer.status_code}


async def _beside_slow(
    slow: httpx.AsyncClient, honest: httpx.AsyncClient, lists: int, count: int
) -> dict[str, float]:
    async def endless() -> AsyncIterator[bytes]:
        yield b'{"user_id": "'
        await asyncio.sleep(3600)

    uploads = [
        asyncio.ensure_future(slow.post(path, content=endless()))
        for path in ("/v1/recommend", "/v1/events")
        for _ in range(count // 2)
    ]
    await asyncio.sleep(0.1)
    times_ms, statuses = [], Counter[int]()
    for n in range(lists):
        began_s = time.perf_counter()
        answer = await honest.post("/v1/recommend", json={"user_id": f"u{n}"})
        times_ms.append(1000 * (time.perf_counter() - began_s))
        statuses[answer.status_code] += 1
    waiting = sum(not upload.done() for upload in uploads)
    for upload in uploads:
        upload.cancel()
    await asyncio.gather(*uploads, return_exceptions=True)
    times_ms.sort()
    return {
        "uploads": waiting, "lists": lists, "answered": statuses[200] / lists,
        "p50_ms": round(times_ms[lists // 2], 2), "most_ms": round(times_ms[-1], 2),
    }  # fmt: skip


async def _repeats(client: httpx.AsyncClient) -> dict[str, int]:
    event = {"type": "engagement", "time_ms": START_MS, "request_id": "r", "user_id": "u",
             "item_id": "v1", "kind": "like", "event_id": "e"}  # fmt: skip
    body = {"events": [event]}
    answers = await asyncio.gather(*(client.post("/v1/events", json=body) for _ in range(_REPEATS)))
    return {name: sum(a.json()[name] for a in answers) for name in ("accepted", "duplicates")}
