"""``recsys bench replicas``: requests while replicas come and go, by a rolling restart and by scaling.

Both options a system of their own with an open loop that doesn't end before the matter does, so that every moment
of it is under load. What a replica says itself (whether it has caught up, how many lists it has answered) is
read at its own port, a few times a second: the public one tells nothing of who answered.
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

import httpx

from benchmarks.harness import serve_doors as doors
from benchmarks.harness.live_system import HOST, Figures, Live, Say, counted, live, offered
from recsys.config.system_config import Config
from runtime.parts import restart as restarts

PARTS: Final = ("restart", "scaling")
_LEAD_S: Final = 5.0  # of load before anything is asked for
_AFTER_S: Final = 8.0  # and once it is done
_PATIENCE_S: Final = 240.0
_LOOK_S: Final = 0.25
_LISTS: Final = 'recsys_requests_total{route="/v1/recommend",status="200"} '


@dataclass(frozen=True)
class ReplicaOptions:
    """What is asked of the bench. ``low`` and ``high``: requests a second for one replica, and such that
    another is wanted; ``target``: serve.target_ongoing; ``down_s``: serve.downscale_s."""

    replicas: int = 2
    low: float = 20.0
    high: float = 100.0
    target: float = 0.3
    down_s: float = 10.0
    parts: tuple[str, ...] = PARTS
    seed: int = 0


@dataclass
class Life:
    """One replica as it was seen. Times in seconds since the watch began; None: not seen."""

    seen_s: float
    ready_s: float | None = None  # it says that it has caught up
    answered_s: float | None = None  # a list of its own
    gone_s: float | None = None
    unready_lists: int = 0  # answered before it said that it had caught up

    def look(self, now_s: float, ready: bool, lists: int) -> None:
        if lists and self.answered_s is None:
            self.answered_s = now_s
            # A look asks for both at a time: ready comes first, or it answered without.
            self.unready_lists = 0 if ready else lists
        if ready and self.ready_s is None:
            self.ready_s = now_s


@dataclass
class Watch:
    """All replicas that were there while it looked."""

    system: Live
    lives: dict[int, Life] = field(default_factory=dict)
    began_s: float = field(default_factory=time.monotonic)

    @property
    def now_s(self) -> float:
        return time.monotonic() - self.began_s

    def look(self) -> set[int]:
        """Looks once; the replicas that are there."""
        there = self.system.replicas()
        for pid in there:
            life = self.lives.setdefault(pid, Life(self.now_s))
            with contextlib.suppress(Exception):  # it has no port yet, or none any more
                port = doors.direct_port(pid)
                ready = httpx.get(f"http://{HOST}:{port}/readyz", timeout=1.0).is_success
                life.look(self.now_s, ready, _lists(port))
        for pid, life in self.lives.items():
            if pid not in there and life.gone_s is None:
                life.gone_s = self.now_s
        return there

    def until(self, holds: Callable[[set[int]], bool], what: str) -> float:
        """Looks until it holds; when that was. Raises TimeoutError."""
        until_s = time.monotonic() + _PATIENCE_S
        while not holds(self.look()):
            if time.monotonic() > until_s:
                raise TimeoutError(f"after {_PATIENCE_S:.0f} s still not: {what}; {self.lives}")
            time.sleep(_LOOK_S)
        return self.now_s

    def answering(self, pids: set[int]) -> bool:
        return all(self.lives[pid].answered_s is not None for pid in pids)


def _lists(port: int) -> int:
    """Lists that the replica at a port has answered with 200."""
    text = httpx.get(f"http://{HOST}:{port}/metrics", timeout=1.0).text
    at = text.find(_LISTS)
    return int(float(text[at + len(_LISTS) :].split("\n", 1)[0])) if at >= 0 else 0


def measure_replicas(options: ReplicaOptions, say: Say = lambda text: None) -> Figures:
    """Requests and times of a rolling restart, and of one replica more and one less."""
    base = Config()
    free = replace(base.serve, port=0, dashboard_port=0)
    figures: Figures = {}
    if "restart" in options.parts:
        config = replace(base, serve=replace(free, replicas=options.replicas))
        with live(config, say) as system:
            figures["restart"] = _restart(system, options, say)
    if "scaling" in options.parts:
        serve = replace(
            free, min_replicas=1, max_replicas=2, target_ongoing=options.target, downscale_s=options.down_s
        )
        with live(replace(base, serve=serve), say) as system:
            figures["scaling"] = _scaling(system, options, say)
    return {
        "what": f"restart: {options.replicas} replicas at {options.high:.0f} requests/s; scaling: 1 to 2 replicas, "
        f"{options.low:.0f}, {options.high:.0f}, {options.low:.0f} requests/s; times in s",
        "figures": figures,
        "comparators": {},
    }


def _restart(system: Live, options: ReplicaOptions, say: Say) -> Figures:
    old, watch = system.replicas(), Watch(system)
    with offered(system, options.high, 2 * _PATIENCE_S, options.seed) as load:
        time.sleep(_LEAD_S)
        asked_s = watch.now_s
        number = restarts.options("serve", system.state)
        gone_s = watch.until(lambda there: not old & there, "all replicas are new")
        restarts.wait(system.state, number, _PATIENCE_S)
        done_s = watch.now_s
        say(f"replaced in {gone_s - asked_s:.0f} s")
        time.sleep(_AFTER_S)
        watch.look()
        sent = load.stop()
    new = [life for pid, life in watch.lives.items() if pid not in old]
    return {
        **counted(sent),
        "replaced_s": round(gone_s - asked_s, 1),
        "said_s": round(done_s - asked_s, 1),  # `recsys restart serve` returned
        "new_replicas": [_told(life, asked_s) for life in new],
    }


def _scaling(system: Live, options: ReplicaOptions, say: Say) -> Figures:
    watch = Watch(system)
    with offered(system, options.low, _LEAD_S, options.seed) as load:
        before = load.all()
    one = watch.look()
    up_s = watch.now_s
    with offered(system, options.high, 2 * _PATIENCE_S, options.seed + 1) as load:
        taken_s = watch.until(
            lambda there: len(there) > len(one) and watch.answering(there),
            "a second replica answers",
        )
        say(f"a second replica answers after {taken_s - up_s:.0f} s")
        time.sleep(_AFTER_S)
        during = load.stop()
    down_s = watch.now_s
    with offered(system, options.low, 2 * _PATIENCE_S, options.seed + 2) as load:
        gone_s = watch.until(lambda there: len(there) == len(one), "the second replica is gone")
        say(f"one replica less after {gone_s - down_s:.0f} s")
        time.sleep(_AFTER_S)
        after = load.stop()
    new = [life for pid, life in watch.lives.items() if pid not in one]
    return {
        "low_before": counted(before),
        "high": counted(during),
        "low_after": counted(after),
        "up_s": round(taken_s - up_s, 1),
        "down_s": round(gone_s - down_s, 1),
        "new_replicas": [_told(life, up_s) for life in new],
    }


def _told(life: Life, since_s: float) -> Figures:
    """A replica's times since something was asked for."""

    def since(at_s: float | None) -> float | None:
        return None if at_s is None else round(at_s - since_s, 1)

    return {
        "started_s": since(life.seen_s),
        "ready_s": since(life.ready_s),
        "answered_s": since(life.answered_s),
        "gone_s": since(life.gone_s),
        "unready_lists": life.unready_lists,
    }
