"""Time of a request by stage: a sampling profiler over the app, called in a loop in one process. No server
and no socket but the session store's are involved. Before that, processor time of a request.

A sample belongs to a stage by the files on its stack, so the measured code needs no marks. Files that do the
work of a stage (retrieval, ranking) may call helpers of another: the outermost counts. Files that only pass
the request on (routes, the service) are on every stack: there the innermost counts, if no stage is at work.
"""

import asyncio
import signal
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from types import FrameType
from typing import Any, Final

from benchmarks.harness.worker_processes import Messages, reporting_errors
from recsys.clock import machine_ms
from recsys.config.system_config import Config
from recsys.process.latency_tuning import tune_for_latency
from recsys.process.open_log import open_log
from serving.http_app import build_app
from serving.service import Service
from serving.sessions.session_store import RedisSessions

_EVERY_S: Final = 0.002  # a sample takes some 15 µs
_WARM: Final = 100  # requests
_TURNS: Final = 20  # of requests, in which processor time is measured
_TURN: Final = 50  # requests
WORK: Final = {
    "session get": ("serving/sessions/",),
    "unpack": ("recsys/features/session",),
    "features": ("recsys/features/",),
    "retrieve": (
        "serving/retrieval/",
        "serving/sources/",
        "serving/index/",
        "serving/replica/group_index",
        "serving/replica/popularity",
        "recsys/arrays/bitmap",
        "recsys/model/retrieval_vectors",
    ),
    "rank": ("serving/scorers/", "recsys/model/"),
    "select": ("serving/selection/", "experiments/"),
    "impression": ("serving/ingestion/log_writer", "recsys/events/"),
}
WAY: Final = {
    "parse": ("serving/http/",),
    "encode": ("serving/http_app",),
    "answer": ("serving/pipeline", "serving/service", "serving/replica/replica"),  # stamp, items, impression
    "http": ("/starlette/", "/fastapi/", "serving/http/serving_metrics", "/prometheus_client/"),
    "wait": ("/selectors.py",),  # for the session store
}


def stage_of(files: Sequence[str]) -> str:
    """Stage of a stack, by its files from the innermost outwards."""
    for file in reversed(files):
        if stage := _work_stage(file):
            return stage
    return next((stage for file in files if (stage := _way_stage(file))), "other")


@lru_cache(maxsize=10_000)
def _work_stage(file: str) -> str:
    return _of(WORK, file)


@lru_cache(maxsize=10_000)
def _way_stage(file: str) -> str:
    return _of(WAY, file)


def _of(table: dict[str, tuple[str, ...]], file: str) -> str:
    return next((s for s, parts in table.items() if any(part in file for part in parts)), "")


@contextmanager
def sampling() -> Iterator["Counter[str]"]:
    """Counts samples of the main thread by stage inside the context."""
    counts: Counter[str] = Counter()

    def look(number: int, frame: FrameType | None) -> None:
        files = []
        while frame is not None:
            files.append(frame.f_code.co_filename)
            frame = frame.f_back
        counts[stage_of(files)] += 1

    before = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, _EVERY_S, _EVERY_S)
    try:
        yield counts
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def stages(config: Config, bodies: Sequence[bytes], seconds: float, messages: Messages) -> None:
    """Main function of a process: sends microseconds of a request, in all and by stage."""
    with reporting_errors(messages, 0):
        service = Service(config, open_log(config), RedisSessions(config.sessions.url), machine_ms)
        app = build_app(service, lambda: "")

        async def run() -> dict[str, Any]:
            async with app.router.lifespan_context(app):
                while not service.ready:
                    await asyncio.sleep(0.05)
                tune_for_latency()
                for number in range(_WARM):
                    await _request(app, bodies[number % len(bodies)])
                processor_us = await _processor_us(app, bodies)
                asked, began = 0, time.perf_counter()
                with sampling() as counts:
                    while time.perf_counter() - began < seconds:
                        await _request(app, bodies[asked % len(bodies)])
                        asked += 1
                passed = time.perf_counter() - began
            return _figures(counts, passed, asked) | processor_us

        messages.put(("stages", 0, asyncio.run(run())))


async def _processor_us(app: Any, bodies: Sequence[bytes]) -> dict[str, Any]:
    """Microseconds of processor time of a request in this process, all threads: the median of turns."""
    spent = []
    for turn in range(_TURNS):
        began_ns = time.process_time_ns()
        for number in range(_TURN):
            await _request(app, bodies[(turn * _TURN + number) % len(bodies)])
        spent.append((time.process_time_ns() - began_ns) / 1_000 / _TURN)
    return {"processor_us": round(statistics.median(spent), 1)}


async def _request(app: Any, body: bytes) -> None:
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
        "scheme": "http", "path": "/v1/recommend", "query_string": b"", "root_path": "",
        "headers": [(b"content-type", b"application/json")],
    }  # fmt: skip
    statuses = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        statuses.append(message.get("status", 200))

    await app(scope, receive, send)
    if statuses[0] != 200:
        raise RuntimeError(f"the app answers {statuses[0]}, expected 200")


def _figures(counts: "Counter[str]", passed_s: float, asked: int) -> dict[str, Any]:
    looks, whole_us = max(1, counts.total()), 1e6 * passed_s / asked
    stages_us = {stage: round(whole_us * count / looks, 1) for stage, count in counts.most_common()}
    return {"request_us": round(whole_us, 1), "stages_us": stages_us, "requests": asked}
