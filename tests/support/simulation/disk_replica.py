"""A replica over a log on disk, in a process of its own, without Ray: it can be killed and started again."""

import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from benchmarks.harness.memory_sessions import MemorySessions
from recsys.clock import machine_ms
from recsys.config.safety_config import AccessConfig
from recsys.config.system_config import Config
from recsys.events.event_types import Engagement, Item, decode, encode
from recsys.events.records import EVENTS, ITEMS
from recsys.features.feature_set_file import feature_set
from recsys.features.session import Session
from recsys.log.protocol import Append, Log
from recsys.process.open_log import create_topics, open_log
from runtime.jobs.key_requests import add_key
from serving.access.key_files import TOKEN_KEYS
from serving.http_app import build_app
from serving.service import Service
from serving.sessions.counter_loop import CounterLoop
from serving.sessions.session_loop import SessionLoop


def config_of(folder: Path, origin: str) -> Config:
    access = AccessConfig(mode="keys", origins=(origin,), user_lists=0, user_events=0)
    return replace(Config(), state=str(folder), access=access)


class DiskReplica:
    """The process and its log. Calls need keys; pages of ``origin`` may call."""

    def __init__(self, folder: Path, port: int, origin: str, items: int) -> None:
        self.folder, self.origin = folder, origin
        self.config = config_of(folder, origin)
        self.url = f"http://127.0.0.1:{port}"
        (folder / "run").mkdir(parents=True)
        (folder / "run" / TOKEN_KEYS).write_text("the secret of tokens")
        self.log: Log = open_log(self.config)
        create_topics(self.log, self.config)
        now_ms = time.time_ns() // 1_000_000
        catalogue = [Item(time_ms=now_ms, item_id=f"v{i}") for i in range(items)]
        self.log.append(ITEMS, [Append(0, b"", encode(item)) for item in catalogue])
        # Processes are forked from one that has imported everything: a start takes a second.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__])
        self._process: BaseProcess | None = None

    def add_key(self, **options: Any) -> str:
        return add_key(self.log, "test", ["recommend"], time.time_ns() // 1_000_000, **options)

    def start(self) -> None:
        port = int(self.url.rpartition(":")[2])
        self._process = self._context.Process(target=serve, args=(self.folder, port, self.origin))
        self._process.start()

    def kill(self) -> None:
        """As kill -9 does."""
        if self._process is not None:
            self._process.kill()
            self._process.join()

    def await_ready(self, timeout_s: float = 60.0) -> None:
        assert self._process is not None
        until = time.monotonic() + timeout_s
        while not self._is_ready():
            assert self._process.is_alive(), "the replica ended"
            assert time.monotonic() < until, httpx.get(f"{self.url}/readyz").text
            time.sleep(0.05)

    def ends(self) -> list[int]:
        """Next offset of each partition of events."""
        return [self.log.end(EVENTS, p) for p in range(self.log.partitions(EVENTS))]

    def engagements(self, offsets: Sequence[int] = ()) -> list[Engagement]:
        """All engagements on the log from these offsets on, copies included."""
        starts = offsets or [0] * self.log.partitions(EVENTS)
        records = [
            record for p, start in enumerate(starts) for record in self.log.read(EVENTS, p, start, 1_000_000)
        ]
        events = [decode(record.value) for record in records]
        return [event for event in events if isinstance(event, Engagement)]

    def folded_events(self, user_id: str) -> int:
        """Engagements that a user's session counts: repeats are dropped."""
        sessions, features = MemorySessions(), feature_set(self.config)
        loop = SessionLoop(self.log, sessions, features, lambda: 0)
        while loop.turn():
            pass
        return Session.unpack(sessions.blobs[user_id], features).events

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=1.0).status_code == 200
        except httpx.TransportError:
            return False


def serve(folder: Path, port: int, origin: str) -> None:
    config = config_of(folder, origin)
    log, sessions, features = open_log(config), MemorySessions(), feature_set(config)
    # No part folds: what the log holds is folded once, else the replica would wait for its folds.
    counters = CounterLoop(log, features)
    for loop in (SessionLoop(log, sessions, features, machine_ms), counters):
        while loop.turn():
            pass
    counters.publish()
    app = build_app(Service(config, log, sessions, machine_ms), lambda: "the admin key")
    uvicorn.run(app, port=port, log_level="warning")
