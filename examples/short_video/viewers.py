"""Simulated viewers of a running server, with a strict limit on events per second.

They work with any catalogue: the simulated world decides who likes its own items, tags decide for others.
One thread decides, a few send; engagements are sent in order, one request at a time.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from examples.short_video.crowd import Crowd
from examples.short_video.warmup import pending
from examples.short_video.world import World
from recsys.client import Client
from recsys.clock import timer_of
from recsys.config.system_config import Config
from recsys.events.event_types import ClientEvent
from recsys.events.hashing import Id
from recsys.process.clock_file import clock_of
from recsys.process.part_process import Stop
from runtime.supervision import launch_plan
from serving.access.hosts import is_open

TICK_S: Final = 0.02
_REPORT_S: Final = 10.0
_THREADS: Final = 8
_BATCH: Final = 100  # events in one request
# Events queued for an unresponsive server; older ones are dropped and counted.
_MAX_QUEUED: Final = 5_000
_RETRY_MS: Final = 1_000
# Average events per list of eight: the request, and engagements until the viewer leaves.
EVENTS_PER_LIST: Final = 13.0

_log = logging.getLogger(__name__)


class Sender:
    """Sends the crowd's requests and events through a client, and counts them. ``clock``: event time in ms.
    Not thread-safe."""

    def __init__(self, crowd: Crowd, client: Any, clock: Callable[[], int]) -> None:
        self._crowd, self._client, self._clock = crowd, client, clock
        self._timer_ms = timer_of(clock)
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="viewer")
        self._outbox: deque[ClientEvent] = deque()
        self._sending: tuple[Future[Any], list[ClientEvent]] | None = None
        self._asking: dict[Future[Any], Any] = {}
        self._retry_at_ms = 0
        self.counts = dict.fromkeys(("events", "lists", "shown", "liked", "failed", "rejected", "lost"), 0)

    def turn(self) -> None:
        """Handles answers that have arrived, and sends due requests and events."""
        now_ms = self._clock()
        for future in [future for future in self._asking if future.done()]:
            self._take(future, self._asking.pop(future), now_ms)
        work = self._crowd.turn(now_ms, max_lists=2 * _THREADS - len(self._asking))
        for viewer in work.lists:
            future = self._pool.submit(self._client.recommend, viewer.user_id, viewer.n)
            self._asking[future] = viewer
        self.counts["shown"] += sum(event.kind == "view" for event in work.events)
        self.counts["liked"] += sum(event.kind == "long_view" for event in work.events)
        self._outbox.extend(work.events)
        if work.items:
            items = {item.item_id: item.fields for item in work.items}
            self._pool.submit(self._publish, items)
        while len(self._outbox) > _MAX_QUEUED:
            self._outbox.popleft()
            self.counts["lost"] += 1
        self._send()

    def _publish(self, items: Mapping[Id, Mapping[str, Any]]) -> None:
        try:
            self.counts["rejected"] += len(self._client.upsert_items(items).rejected)
        except Exception as error:
            self._failed("items", error)

    def close(self) -> None:
        """Waits for the open request, and sends the queued events once."""
        if self._sending:
            self._sent(*self._sending)
        self._retry_at_ms = 0
        while self._outbox and not self.counts["lost"]:
            self._send(wait=True)
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _send(self, wait: bool = False) -> None:
        if self._sending and (wait or self._sending[0].done()):
            self._sent(*self._sending)
        if self._sending or not self._outbox or self._timer_ms() < self._retry_at_ms:
            return
        batch = [self._outbox.popleft() for _ in range(min(_BATCH, len(self._outbox)))]
        self._sending = self._pool.submit(self._client.send_events, batch), batch
        if wait:
            self._sent(*self._sending, again=False)

    def _sent(self, future: Future[Any], batch: list[ClientEvent], again: bool = True) -> None:
        self._sending = None
        try:
            rejected = len(future.result().rejected)
            self.counts["rejected"] += rejected
            self.counts["events"] += len(batch) - rejected
        except Exception as error:  # any error: a retry may succeed
            self._failed("events", error)
            if again and getattr(error, "passing", True):  # events have ids, so repeats are harmless
                self._outbox.extendleft(reversed(batch))
            else:
                self.counts["lost"] += len(batch)
            self._retry_at_ms = self._timer_ms() + _RETRY_MS

    def _take(self, future: Future[Any], viewer: Any, now_ms: int) -> None:
        try:
            self._crowd.answered(viewer, future.result(), now_ms)
            self.counts["lists"] += 1
        except Exception as error:
            self._failed("list", error)
            self._crowd.failed(viewer, now_ms)

    def _failed(self, what: str, error: Exception) -> None:
        self.counts["failed"] += 1
        if self.counts["failed"] in (1, 10, 100, 1000):
            _log.warning("%s: %s (%d failures so far)", what, error, self.counts["failed"])


class SummaryLines:
    """Formats a summary line every ten seconds."""

    def __init__(self, now_s: float) -> None:
        self._since_s, self._before = now_s, dict[str, int]()

    def line(self, sender: Sender, crowd: Crowd, now_s: float, last: bool = False) -> str | None:
        """Returns the line that is due, or None."""
        passed = now_s - self._since_s
        if passed < _REPORT_S and not last:
            return None
        new = {name: n - self._before.get(name, 0) for name, n in sender.counts.items()}
        self._since_s, self._before = now_s, dict(sender.counts)
        rate = (new["events"] + new["lists"]) / max(passed, 0.001)
        liked = f"{new['liked'] / new['shown']:.1%}" if new["shown"] else "–"
        text = (
            f"{time.strftime('%H:%M:%S', time.localtime(now_s))}  {rate:,.1f} events/s  "
            f"{crowd.inside} viewers  {new['lists']} lists  long views {liked}"
        )
        more = {"late": f"{crowd.late_ms} ms" if crowd.late_ms > 100 else ""}
        more |= {name: str(new[name]) if new[name] else "" for name in ("failed", "rejected", "lost")}
        return text + "".join(f"  {name} {value}" for name, value in more.items() if value)


def drive(
    crowd: Crowd,
    client: Any,
    until: Callable[[], bool],
    report: Callable[[str], None],
    clock: Callable[[], int],
) -> dict[str, int]:
    """Lets the crowd browse until ``until`` (called 50 times a second) returns True; returns the counts."""

    def now_s() -> float:
        return timer_of(clock)() / 1000

    sender, lines = Sender(crowd, client, clock), SummaryLines(now_s())
    try:
        while not until():
            sender.turn()
            line = lines.line(sender, crowd, now_s())
            if line:
                report(line)
    finally:
        sender.close()
        report(lines.line(sender, crowd, now_s(), last=True) or "")
    return sender.counts


def run_part(config: Config, stop: Stop) -> None:
    """Runs the part ``viewers``, at the plan's rate of lists per second of event time.

    Waits while the warm-up writes past events: current events would close their attribution windows.
    """
    while pending(Path(config.state)) and not stop.wait(0.5):
        pass
    _, plan = launch_plan.read(config.state)
    clock = clock_of(config)
    now_ms = clock()
    crowd = Crowd(World(start_ms=now_ms), plan.viewers * EVENTS_PER_LIST, now_ms)
    # Without a key where none is needed: then its events count by their tokens, as those of people do.
    headers = {} if is_open(config) else launch_plan.admin_headers(config.state)
    client = Client(launch_plan.local_api_url(config), headers=headers)

    def report(line: str) -> None:
        _log.info("%s", line)
        stop.heartbeat.gauge("viewers", crowd.inside)

    drive(crowd, client, lambda: stop.wait(TICK_S), report, clock)
