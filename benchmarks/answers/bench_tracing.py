"""Cost of tracing for a request: one service in one process without a tracer, with one that samples requests,
and with one that traces all. Measures processor time of the answering thread, so other load counts less; the
thread that sends spans isn't included. ``hook`` is the cost when tracing is off: unheard marks, and the
request id for log lines."""

import asyncio
import tempfile
import time
import timeit
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.harness.local_system import START_MS, LocalSystem, small_config
from recsys.events.event_types import Item
from recsys.events.hashing import uniform
from recsys.observability.log_lines import LOG_CONTEXT
from recsys.observability.spans import Span
from recsys.observability.tracer import Tracer
from serving.request import Request
from serving.tracing.request_trace import unmarked
from serving.tracing.swipe_traces import SwipeTraces

_TURNS: Final = 40  # the kinds take turns, so that a slower machine affects all alike
_SHARE: Final = 0.01
_STAGES: Final = ("session", "wait", "filter", "retrieve", "rank", "select", "answer")


def measure_tracing(requests: int, items: int, seed: int) -> dict[str, dict[str, float]]:
    """Microseconds of processor time a request, by kind."""
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_measure(LocalSystem(small_config(Path(folder))), requests, items, seed))


async def _measure(
    system: LocalSystem, requests: int, items: int, seed: int
) -> dict[str, dict[str, float]]:
    system.publish([_item(n, seed) for n in range(items)])
    await system.start()
    for n in range(10):  # train the ranker a little
        await system.watch(await system.ask(Request(f"u{n % 5}", n=8)))
        system.turn()
    kinds = {"off": None, f"{_SHARE:.0%} traced": _traces(_SHARE), "all traced": _traces(1.0)}
    spent: dict[str, list[float]] = {kind: [] for kind in kinds}
    for turn in range(_TURNS + 1):
        for kind, traces in kinds.items():
            system.service.traces = traces
            each = await _timed(system, max(1, requests // _TURNS))
            spent[kind] += each if turn else []
    system.service.traces = None
    await system.stop()
    return {"hook": {"mean_us": hook_us()}} | {
        kind: _figures(times_us) for kind, times_us in spent.items()
    }


def hook_us(times: int = 100_000) -> float:
    """Microseconds of the hooks of one request, measured in a loop of their own, less the loop."""

    def hooked() -> None:
        before = LOG_CONTEXT.set({"request_id": "r1"})
        try:
            for stage in _STAGES:
                unmarked(stage)
        finally:
            LOG_CONTEXT.reset(before)

    def empty() -> None:
        for _ in _STAGES:
            pass

    took = min(timeit.repeat(hooked, number=times, repeat=5, timer=time.thread_time))
    less = min(timeit.repeat(empty, number=times, repeat=5, timer=time.thread_time))
    return round(1e6 * (took - less) / times, 2)


async def _timed(system: LocalSystem, requests: int) -> list[float]:
    times_us = []
    for n in range(requests):
        began = time.thread_time()
        await system.service.recommend(Request(f"u{n % 50}", n=10))
        times_us.append(1e6 * (time.thread_time() - began))
    return times_us


def _figures(each: Sequence[float]) -> dict[str, float]:
    ordered = sorted(each)
    return {
        "p50_us": round(ordered[len(ordered) // 2], 1),
        "mean_us": round(sum(each) / len(each), 1),
    }


def _traces(share: float) -> SwipeTraces:
    def nowhere(spans: Sequence[Span]) -> Any: ...

    return SwipeTraces(Tracer(share, [nowhere]), "replica", time.time_ns)


def _item(n: int, seed: int) -> Item:
    tag = f"t{int(10 * uniform(seed, 'item', n))}"
    fields = {"author": f"a{n % 50}", "tags": [tag], "topic": tag, "duration_ms": 9_000}
    return Item(time_ms=START_MS, item_id=f"v{n}", fields=fields)
