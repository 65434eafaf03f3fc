"""A real system in a test's folder, started as a user starts it, with viewers, and killed part by part."""

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

from benchmarks.harness.live_system import Live, end
from examples.short_video.world import World
from recsys.client import ApiError, Client
from recsys.config.log_config import LogConfig
from recsys.config.promotion_config import PromotionConfig
from recsys.config.system_config import Config, ServeConfig
from recsys.events.event_types import Engagement
from runtime.cli.up import start
from runtime.supervision import launch_plan as plans
from runtime.supervision import run_file
from runtime.supervision.processes import holders, kill_session, listening

ITEMS, USERS = 300, 20
# Gates that let any candidate pass. A candidate equal to live has no evidence for itself: a test promotes it
# to canary by hand, and these limits let it go on from there.
OPEN_GATES = PromotionConfig(
    share=1.0, canary_examples=30, settle_s=3.0, loss_margin=10, auc_margin=1, segment_margin=10,
    recall_margin=1, engagement_margin=1, score_shift=10, score_spread=100, latency=100,
    concentration=100, degraded=1,
)  # fmt: skip


class LiveSystem(Live):
    """One `recsys up` on free ports; ``sections`` replace sections of its configuration. Without Ray's
    dashboard, whose processes take seconds of each start."""

    def __init__(self, state: Path, log: str = "sqlite", dashboard: bool = False, **sections: Any) -> None:
        self.desired = replace(
            Config(),
            state=str(state),
            serve=ServeConfig(port=0, dashboard=dashboard, dashboard_port=0),
            log=LogConfig(url=log),
            **sections,
        )
        super().__init__(self.desired, World(seed=5, users=USERS, items=ITEMS, topics=6))

    def client(self, admin: bool = False) -> Client:
        """A client that waits as long as a busy machine takes."""
        key = (self.state / "run" / "admin.key").read_text().strip() if admin else None
        return Client(self.url, admin_key=key, timeout_s=10.0)

    def up(self) -> None:
        """Starts the desired configuration, and fails with the end of the output where that fails."""
        status = start(self.desired, detach=True)
        assert status == 0, (self.state / "run" / "up.out").read_text()[-2000:]
        self.config, _ = plans.read(self.state)

    def down(self) -> None:
        end(self.state)

    def running(self) -> run_file.Running:
        running = run_file.read(self.state)
        assert running is not None
        return running

    def version(self) -> dict[str, int]:
        """Model version that a replica serves."""
        with self.client() as client:
            version: dict[str, int] = client.status()["version"]
            return version

    def kill_part(self, name: str) -> None:
        """kill -9 of a part's own process."""
        self.signal([self.leader(name).pid], signal.SIGKILL)

    def kill_within(self, part: str, words: str) -> None:
        """kill -9 of a process that a part started, by its command line, once there is one: after an earlier
        kill it may still be on its way back."""
        found: list[int] = []

        def finds() -> bool:
            with contextlib.suppress(RuntimeError):
                found[:] = self.processes_matching(part, words)[:1]
            return bool(found)

        until(finds, 60, f"{part} has a process with {words} in its command line")
        self.signal(found, signal.SIGKILL)

    def kill_everything(self) -> None:
        """kill -9 of the supervisor and all that it started, at once. Waits until their ports are free: the
        last thread of a process may end, and close its sockets, after the process counts as dead."""
        running = self.running()
        leaders = {str(leader.pid): leader for leader in running.processes}
        ports = {listener.port for part in listening(leaders).values() for listener in part}
        with contextlib.suppress(ProcessLookupError):
            os.kill(running.supervisor.pid, signal.SIGKILL)
        for leader in running.processes:
            kill_session(leader)
        until(lambda: not holders(ports), 30, f"all of the ports {sorted(ports)} are free")

    def wait_ready(self, timeout_s: float = 240.0) -> None:
        """Waits until all parts and a replica are ready."""
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
    """Viewers that ask and watch, one after the other; keeps the ids of acknowledged events. At most ten
    lists a second: more would take the processors from parts that start."""

    _numbers = itertools.count()  # so that no two traffics send the same event ids

    def __init__(self, system: LiveSystem) -> None:
        self._system, self._stop, self._number = system, threading.Event(), next(self._numbers)
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
        while not self._stop.wait(0.1):
            number += 1
            try:
                with self._system.client() as client:
                    self._visit(client, number)
            except ApiError:
                self.failures += 1  # nothing was acknowledged, so nothing must be on the log

    def _visit(self, client: Client, number: int) -> None:
        user_id = f"u{number % USERS}"
        answer = client.recommend(user_id, 3)
        self.asked.append((answer.request_id, user_id))
        now_ms = time.time_ns() // 1_000_000
        events = [
            Engagement(
                time_ms=now_ms, request_id=answer.request_id, user_id=user_id, item_id=item.item_id,
                kind="view", watch_ms=500 + 3000 * (number % 3), event_id=f"{self._number}-{number}-{rank}",
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
        time.sleep(0.1)
