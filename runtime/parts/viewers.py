"""``recsys viewers``: simulated viewers of a running server, at a rate of events that is never exceeded.

They work with any catalogue: an item of the simulated world is liked as the world says, any other by its
tags. One thread decides, a few send; engagements go out in order, in one request at a time.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

if TYPE_CHECKING:
    from recsys.config.system_config import Config
    from recsys.events.event_types import ClientEvent
    from recsys.process.part_process import Stop
    from replay.simulation.crowd import Crowd

_TICK_S: Final = 0.02
_REPORT_S: Final = 10.0
_THREADS: Final = 8
_BATCH: Final = 100  # events in one request
# Events that wait for a server which doesn't answer; older ones are lost, and counted.
_KEPT: Final = 5_000
_AGAIN_S: Final = 1.0
# Of one list of eight: the request, and what is done with the items until the viewer has had enough.
EVENTS_PER_LIST: Final = 13.0

_log = logging.getLogger(__name__)


class Sender:
    """Carries out what the crowd wants over a client, and counts. Not to be shared between threads."""

    def __init__(self, crowd: "Crowd", client: Any, clock: Callable[[], float] = time.time) -> None:
        self._crowd, self._client, self._clock = crowd, client, clock
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="viewer")
        self._outbox: deque[ClientEvent] = deque()
        self._sending: tuple[Future[Any], list[ClientEvent]] | None = None
        self._asking: dict[Future[Any], Any] = {}
        self._again_s = 0.0
        self.counts = dict.fromkeys(
            ("events", "lists", "shown", "liked", "failed", "rejected", "lost"), 0
        )

    def turn(self) -> None:
        """Takes in what has been answered, and sends what is due."""
        now_ms = int(self._clock() * 1000)
        for future in [future for future in self._asking if future.done()]:
            self._take(future, self._asking.pop(future), now_ms)
        work = self._crowd.turn(now_ms, max_lists=2 * _THREADS - len(self._asking))
        for viewer in work.lists:
            future = self._pool.submit(self._client.recommend, viewer.user_id, viewer.n)
            self._asking[future] = viewer
        self.counts["shown"] += sum(event.kind == "view" for event in work.events)
        self.counts["liked"] += sum(event.kind == "long_view" for event in work.events)
        self._outbox.extend([*work.items, *work.events])
        while len(self._outbox) > _KEPT:
            self._outbox.popleft()
            self.counts["lost"] += 1
        self._send()

    def close(self) -> None:
        """Waits for what is under way, and sends the rest once."""
        if self._sending:
            self._sent(*self._sending)
        self._again_s = 0.0
        while self._outbox and not self.counts["lost"]:
            self._send(wait=True)
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _send(self, wait: bool = False) -> None:
        if self._sending and (wait or self._sending[0].done()):
            self._sent(*self._sending)
        if self._sending or not self._outbox or self._clock() < self._again_s:
            return
        batch = [self._outbox.popleft() for _ in range(min(_BATCH, len(self._outbox)))]
        self._sending = self._pool.submit(self._client.send_events, batch), batch
        if wait:
            self._sent(*self._sending, again=False)

    def _sent(self, future: Future[Any], batch: "list[ClientEvent]", again: bool = True) -> None:
        self._sending = None
        try:
            rejected = len(future.result().rejected)
            self.counts["rejected"] += rejected
            self.counts["events"] += len(batch) - rejected
        except Exception as error:  # whatever it was, the next try may fare better
            self._failed("events", error)
            if again and getattr(error, "passing", True):  # ids make repeats harmless
                self._outbox.extendleft(reversed(batch))
            else:
                self.counts["lost"] += len(batch)
            self._again_s = self._clock() + _AGAIN_S

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


class Lines:
    """A line about the last seconds, each ten seconds."""

    def __init__(self, now_s: float) -> None:
        self._since_s, self._before = now_s, dict[str, int]()

    def line(self, sender: Sender, crowd: "Crowd", now_s: float, last: bool = False) -> str | None:
        """The line that is due now, if any."""
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
        more |= {
            name: str(new[name]) if new[name] else "" for name in ("failed", "rejected", "lost")
        }
        return text + "".join(f"  {name} {value}" for name, value in more.items() if value)


def drive(
    crowd: "Crowd",
    client: Any,
    until: Callable[[], bool],
    tell: Callable[[str], None],
    clock: Callable[[], float] = time.time,
) -> dict[str, int]:
    """Lets the crowd browse until it is enough; returns the counts. ``until`` is asked 50 times a second."""
    sender, lines = Sender(crowd, client, clock), Lines(clock())
    try:
        while not until():
            sender.turn()
            line = lines.line(sender, crowd, clock())
            if line:
                tell(line)
    finally:
        sender.close()
        tell(lines.line(sender, crowd, clock(), last=True) or "")
    return sender.counts


def viewers(
    url: Annotated[str, typer.Option(help="Of the server.")] = "http://127.0.0.1:8000",
    rate: Annotated[float, typer.Option(help="Events a second at most, lists included.")] = 20.0,
    seconds: Annotated[float, typer.Option(help="How long; 0: until it is stopped.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the world: who likes what.")] = 0,
    users: Annotated[int, typer.Option(help="People who may come.")] = 1000,
    items: Annotated[int, typer.Option(help="Items of the world, with --publish.")] = 2000,
    publish: Annotated[bool, typer.Option(help="Publish the world's items, new ones too.")] = False,
) -> None:
    """Sends simulated viewers to a running server."""
    from recsys.client import Client
    from replay.simulation.crowd import Crowd
    from replay.simulation.world import World

    if rate <= 0 or seconds < 0:
        raise typer.BadParameter(f"rate is {rate}, seconds {seconds}: expected a positive rate")
    start_s = time.time()
    world = World(seed, users, items, start_ms=int(start_s * 1000))
    crowd = Crowd(world, rate, int(start_s * 1000), publish=publish)

    def until() -> bool:
        time.sleep(_TICK_S)
        return 0 < seconds <= time.time() - start_s

    try:
        drive(crowd, Client(url), until, lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


def run_part(config: "Config", stop: "Stop") -> None:
    """The part of the demo; the plan says how many lists a second. It waits while a past is written: what
    happens now would close the windows of what happened then."""
    from recsys.client import Client
    from replay.simulation.crowd import Crowd
    from replay.simulation.world import World
    from replay.warmup import pending
    from runtime.supervision import launch_plan as plans

    while pending(Path(config.state)) and not stop.wait(0.5):
        pass
    _, plan = plans.read(config.state)
    host = "127.0.0.1" if config.serve.host in ("0.0.0.0", "::") else config.serve.host
    now_ms = int(time.time() * 1000)
    crowd = Crowd(World(start_ms=now_ms), plan.viewers * EVENTS_PER_LIST, now_ms)
    client = Client(f"http://{host}:{config.serve.port}")

    def tell(line: str) -> None:
        _log.info("%s", line)
        stop.heartbeat.gauge("viewers", crowd.inside)

    drive(crowd, client, lambda: stop.wait(_TICK_S), tell)
