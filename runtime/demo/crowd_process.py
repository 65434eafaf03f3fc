"""Simulated viewers in a process of their own: what is measured beside them isn't slowed by their code."""

import multiprocessing
import signal
import time
from typing import Any, Final

_TICK_S: Final = 0.02
_END_S: Final = 30.0
_PEOPLE: Final = 20_000  # one who watches real lengths does something every ten seconds or so


class Background:
    """A crowd that sends up to ``rate`` events a second while the block lasts; ``counts`` after it."""

    def __init__(self, url: str, rate: float) -> None:
        context = multiprocessing.get_context("spawn")
        self._stop, self._told = context.Event(), context.Queue()
        self._process = context.Process(
            target=_browse, args=(url, rate, self._stop, self._told), daemon=True
        )
        self.counts: dict[str, int] = {}

    def __enter__(self) -> "Background":
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        try:
            self.counts = self._told.get(timeout=_END_S)
        finally:
            self._process.join(2.0)
            self._process.kill()


def _browse(url: str, rate: float, stop: Any, told: Any) -> None:
    from recsys.client import Client
    from replay.simulation.crowd import Crowd, Work
    from replay.simulation.world import World
    from runtime.parts.viewers import drive

    class Arriving(Crowd):
        """They come one by one: a rush of first lists is another load than the one that is asked for."""

        def turn(self, now_ms: int, max_lists: int = 1) -> Work:
            return super().turn(now_ms, min(max_lists, 1))

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that started us
    now_ms = time.time_ns() // 1_000_000
    crowd = Arriving(World(users=_PEOPLE, start_ms=now_ms), rate, now_ms)
    with Client(url, timeout_s=10.0) as client:
        told.put(drive(crowd, client, lambda: stop.wait(_TICK_S), lambda line: None))
