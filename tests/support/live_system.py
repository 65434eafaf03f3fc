"""A real system in a folder of a test: started as a user does, watched, and killed part by part."""

import contextlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from recsys.client import ApiError, Client
from recsys.config.system_config import Config, LogConfig, ServeConfig
from recsys.events.event_types import Engagement
from replay.simulation.world import World
from runtime.cli.up import start
from runtime.supervision import launch_plan as plans
from runtime.supervision import run_file
from runtime.supervision.processes import kill_session, members_matching

ITEMS, USERS = 300, 20


class LiveSystem:
    """One `recsys up` on free ports."""

    def __init__(self, state: Path, log: str = "sqlite", **sections: Any) -> None:
        self.state = state
        self._config = replace(
            Config(),
            state=str(state),
            serve=ServeConfig(port=0, dashboard_port=0),
            log=LogConfig(url=log),
            **sections,
        )
        self.world = World(seed=5, users=USERS, items=ITEMS, topics=6)

    def up(self) -> None:
        assert start(self._config, detach=True) == 0, (self.state / "run" / "up.out").read_text()[
            -2000:
        ]
        self.config, _ = plans.read(self.state)

    def down(self) -> None:
        running = run_file.read(self.state)
        if running is not None:
            run_file.stop(self.state, running)
            for leader in [*running.processes, running.supervisor]:
                kill_session(leader)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.config.serve.port}"

    def client(self, admin: bool = False) -> Client:
        key = (self.state / "run" / "admin.key").read_text().strip() if admin else None
        return Client(self.url, admin_key=key, timeout_s=3.0)

    def publish_world(self) -> None:
        with self.client(admin=True) as client:
            client.upsert_items(
                {i.item_id: i.fields for i in self.world.items(self.world.start_ms)}
            )
            client.upsert_users({u.user_id: u.fields for u in self.world.users()})

    def running(self) -> run_file.Running:
        running = run_file.read(self.state)
        assert running is not None
        return running

    def kill_part(self, name: str) -> None:
        """kill -9 of the part's own process, as the supervisor started it."""
        part = next(part for part in self.running().parts if part.name == name)
        assert part.process is not None, f"{name} has no process"
        os.kill(part.process.pid, signal.SIGKILL)

    def kill_within(self, part: str, words: str) -> bool:
        """kill -9 of a process that Ray runs for us, by its command line."""
        leader = next(p for p in self.running().parts if p.name == part).process
        assert leader is not None
        for pid in members_matching(leader, words):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                return True
        return False

    def kill_everything(self) -> None:
        """kill -9 of the supervisor and all that it started, at once."""
        running = self.running()
        with contextlib.suppress(ProcessLookupError):
            os.kill(running.supervisor.pid, signal.SIGKILL)
        for leader in running.processes:
            kill_session(leader)

    def wait_ready(self, timeout_s: float = 120.0) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.running().ready:
                with contextlib.suppress(ApiError), self.client() as client:
                    if client.status().get("ready"):
                        return
            time.sleep(0.2)
        states = {part.name: (part.state, part.reason) for part in self.running().parts}
        raise AssertionError(f"not ready after {timeout_s} s: {states}")


class Traffic:
    """Viewers that ask and watch, one after the other; what was acknowledged is remembered by event id."""

    _made = itertools.count()  # no event is one of an earlier traffic's

    def __init__(self, system: LiveSystem) -> None:
        self._system, self._stop, self._which = system, threading.Event(), next(self._made)
        self.acknowledged: set[str] = set()
        self.asked: list[tuple[str, str]] = []  # request and user, in order
        self.failures = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60)

    def _run(self) -> None:
        number = 0
        while not self._stop.wait(0.02):
            number += 1
            try:
                with self._system.client() as client:
                    self._visit(client, number)
            except ApiError:
                self.failures += 1  # nothing was acknowledged: nothing is owed

    def _visit(self, client: Client, number: int) -> None:
        user_id = f"u{number % USERS}"
        answer = client.recommend(user_id, 3)
        self.asked.append((answer.request_id, user_id))
        now_ms = time.time_ns() // 1_000_000
        events = [
            Engagement(
                time_ms=now_ms, request_id=answer.request_id, user_id=user_id, item_id=item.item_id,
                kind="view", watch_ms=500 + 3000 * (number % 3), event_id=f"{self._which}-{number}-{rank}",
            )
            for rank, item in enumerate(answer.items)
        ]  # fmt: skip
        receipt = client.send_events(events)
        for event, outcome in zip(events, receipt.results, strict=True):
            if outcome.status in ("accepted", "duplicate"):
                self.acknowledged.add(str(event.event_id))


def until(holds: Callable[[], object], timeout_s: float, what: str) -> None:
    """Waits until a condition holds; raises AssertionError after the timeout."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"after {timeout_s} s still not: {what}"
        time.sleep(0.05)
