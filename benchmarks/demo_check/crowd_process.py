"""Simulated viewers in a process of their own, so that they don't slow down the measurement."""

import multiprocessing
import signal
import time
from typing import Any, Final

from examples.short_video.crowd import Crowd, Work
from examples.short_video.viewers import drive
from examples.short_video.world import World
from recsys.client import Client
from recsys.clock import machine_ms

_TICK_S: Final = 0.02
_END_S: Final = 30.0
_USERS: Final = 20_000  # a viewer who watches in real time acts every ten seconds or so


class BackgroundCrowd:
    """Context with a crowd that sends up to ``rate`` events per second; ``counts`` is set at its end."""

    def __init__(self, url: str, rate: float) -> None:
        context = multiprocessing.get_context("spawn")
        self._stop, self._results = context.Event(), context.Queue()
        self._process = context.Process(
            target=_browse, args=(url, rate, self._stop, self._results), daemon=True
        )
        self.counts: dict[str, int] = {}

    def __enter__(self) -> "BackgroundCrowd":
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        try:
            self.counts = self._results.get(timeout=_END_S)
        finally:
            self._process.join(2.0)
            self._process.kill()


def _browse(url: str, rate: float, stop: Any, results: Any) -> None:
    class Arriving(Crowd):
        """Crowd that arrives one by one: a rush of first lists would exceed the wanted load."""

        def turn(self, now_ms: int, max_lists: int = 1) -> Work:
            return super().turn(now_ms, min(max_lists, 1))

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles Ctrl-C
    now_ms = time.time_ns() // 1_000_000
    crowd = Arriving(World(users=_USERS, start_ms=now_ms), rate, now_ms)
    with Client(url, timeout_s=10.0) as client:
        results.put(drive(crowd, client, lambda: stop.wait(_TICK_S), lambda line: None, machine_ms))
