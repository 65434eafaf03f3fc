"""Doors of one replica, with its whole app in this process: processor time of hostile bodies, lists of
another client beside them and beside slow uploads, and one event sent many times at once."""

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
from serving.admission.whole_body import MAX_VALUES
from serving.http_app import build_app

_MOST: Final = 999_900  # bytes of a hostile body
_REPEATS: Final = 20
_LIST_EVERY_S: Final = 0.05
_TIMES: Final = 3  # that a hostile body is sent
_KEY: Final = "bench"


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
_NUMBERS: Final = {
    "1e308": b"1e308", "-1e308": b"-1e308", "1e-308": b"1e-308", "5e-324": b"5e-324", "1.5": b"1.5",
    "halfway": b"2.2250738585072011e-308", "20 digits": b"9" * 20, "300 digits": b"1" + b"0" * 300,
    "900 digits": b"0." + b"3" * 900, "1e999": b"1e999",
}  # fmt: skip
_EVENT: Final = (
    b'{"events":[{"type":"engagement","user_id":"u","item_id":"v1","kind":"like","more":'
)
_PLACES: Final = {  # beginning and end of a list of values, by route
    "/v1/events": (b'{"events":[', b"]}"),
    "/v1/events of one": (_EVENT + b"[", b"]}]}"),
    "/v1/recommend": (b'{"user_id":"u","exclude_ids":[', b"]}"),
    "/v1/recommend context": (b'{"user_id":"u","context":{"a":[', b"]}}"),
    "/v1/recommend filters": (b'{"user_id":"u","filters":{"a":[', b"]}}"),
    "/v1/rank": (b'{"user_id":"u","candidate_ids":[', b"]}"),
    "/v1/items": (b'{"items":[{"item_id":"v1","fields":{"a":[', b"]}}]}"),
    "/v1/users": (b'{"users":[{"user_id":"u","fields":{"a":[', b"]}}]}"),
    "/v1/preferences": (b'{"preferences":[', b"]}"),
}


def hostile_bodies() -> dict[tuple[str, str], bytes]:
    """Bodies by route and name: the largest ones, and of lists of numbers those with as many values as a body
    may have, too."""
    bodies = {("/v1/events", name): body for name, body in HOSTILE.items()}
    for place, (start, end) in _PLACES.items():
        for name, number in _NUMBERS.items():
            count = min(MAX_VALUES - 10, (_MOST - len(start) - len(end)) // (len(number) + 1))
            bodies[place, name] = start + b",".join([number] * count) + end
    bodies["/v1/events", "full of 1e308"] = _filled(_EVENTS + b"1e308", b",1e308")
    return bodies


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
    app = build_app(system.service, lambda: _KEY)
    async with app.router.lifespan_context(app):
        while not system.service.ready:
            await asyncio.sleep(0.01)
        gc.freeze()  # as in a replica: else a collection reads all that the imports made
        async with _client(app, "192.0.2.1") as hostile, _client(app, "198.51.100.1") as honest:
            return {
                "hostile_cpu_ms": {n: await _cost(hostile, body) for n, body in HOSTILE.items()},
                "beside_hostile": await _beside_hostile(hostile, honest),
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


async def _beside_hostile(hostile: httpx.AsyncClient, honest: httpx.AsyncClient) -> dict[str, Any]:
    """Longest wait of a client that asks for a list every 50 ms, for each body; the worst ones first."""
    most_ms, statuses = dict[str, float](), dict[str, int]()
    for (place, name), body in hostile_bodies().items():
        route, _, _ = place.partition(" ")

        async def send(route: str = route, body: bytes = body) -> int:
            for _ in range(_TIMES):
                answer = await hostile.post(route, content=body, headers={"x-admin-key": _KEY})
                await asyncio.sleep(_LIST_EVERY_S / 2)
            return answer.status_code

        sending, waits_ms = asyncio.ensure_future(send()), list[float]()
        while not sending.done():
            due_s = time.perf_counter() + _LIST_EVERY_S
            await asyncio.sleep(_LIST_EVERY_S)  # a loop that stands still wakes it late
            answer = await honest.post("/v1/recommend", json={"user_id": f"{name} {len(waits_ms)}"})
            waits_ms.append(1000 * (time.perf_counter() - due_s))
            assert answer.status_code == 200, answer.text
        most_ms[f"{place}: {name}"], statuses[f"{place}: {name}"] = max(waits_ms), sending.result()
    worst = sorted(most_ms, key=lambda each: -most_ms[each])
    return {
        "bodies": len(worst), "most_ms": round(most_ms[worst[0]], 1),
        "each": {name: {"most_ms": round(most_ms[name], 1), "status": statuses[name]} for name in worst},
    }  # fmt: skip


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
