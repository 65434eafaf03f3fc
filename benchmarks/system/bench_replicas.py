"""``recsys bench replicas``: requests while replicas come and go, by a rolling restart and by scaling.

Both load a system of their own with an open loop that outlasts the change, so that every moment of it is
under load. Each replica's readiness and number of answered lists are polled at its own port a few times a
second, because the public port doesn't tell which replica answered.
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

import httpx

from benchmarks.harness import serve_doors as doors
from benchmarks.harness.commands import Figures, Log, no_log
from benchmarks.harness.live_system import HOST, Live, counted, live, offered
from recsys.config.system_config import Config
from runtime.parts import restart

PARTS: Final = ("restart", "scaling")
_LEAD_S: Final = 5.0  # of load before the change
_AFTER_S: Final = 8.0  # of load after the change
_PATIENCE_S: Final = 240.0
_LOOK_S: Final = 0.25
_LISTS: Final = 'recsys_requests_total{route="/v1/recommend",status="200"} '


@dataclass(frozen=True)
class ReplicaOptions:
    """Options of the bench. ``low`` and ``high``: requests a second for one replica, and for more than one;
    ``target``: serve.target_ongoing; ``down_s``: serve.downscale_s."""

    replicas: int = 2
    low: float = 20.0
    high: float = 100.0
    target: float = 0.3
    down_s: float = 10.0
    parts: tuple[str, ...] = PARTS
    seed: int = 0


@dataclass
class ReplicaTimes:
    """Observed times of one replica, in seconds since the watch began; None: not observed."""

    seen_s: float
    ready_s: float | None = None  # it reports that it has caught up
    answered_s: float | None = None  # its first list
    gone_s: float | None = None
    unready_lists: int = 0  # answered before it was ready

    def look(self, now_s: float, ready: bool, lists: int) -> None:
        if lists and self.answered_s is None:
            self.answered_s = now_s
            # One poll reads both, so an unready replica with lists answered too early.
            self.unready_lists = 0 if ready else lists
        if ready and self.ready_s is None:
            self.ready_s = now_s


@dataclass
class Watch:
    """Observes all replicas of a system."""

    system: Live
    lives: dict[int, ReplicaTimes] = field(default_factory=dict)
    began_s: float = field(default_factory=time.monotonic)

    @property
    def now_s(self) -> float:
        return time.monotonic() - self.began_s

    def look(self) -> set[int]:
        """Polls once; returns the current replicas."""
        pids = self.system.replicas()
        for pid in pids:
            life = self.lives.setdefault(pid, ReplicaTimes(self.now_s))
            with contextlib.suppress(Exception):  # it has no port yet, or none any more
                port = doors.direct_port(pid)
                ready = httpx.get(f"http://{HOST}:{port}/readyz", timeout=1.0).is_success
                life.look(self.now_s, ready, _lists(port))
        for pid, life in self.lives.items():
            if pid not in pids and life.gone_s is None:
                life.gone_s = self.now_s
        return pids

    def until(self, holds: Callable[[set[int]], bool], what: str) -> float:
        """Polls until a condition holds; returns that time. Raises TimeoutError."""
        until_s = time.monotonic() + _PATIENCE_S
        while not holds(self.look()):
            if time.monotonic() > until_s:
                raise TimeoutError(f"after {_PATIENCE_S:.0f} s still not: {what}; {self.lives}")
            time.sleep(_LOOK_S)
        return self.now_s

    def answering(self, pids: set[int]) -> bool:
        return all(self.lives[pid].answered_s is not None for pid in pids)


def _lists(port: int) -> int:
    """Number of lists that the replica at a port has answered with 200."""
    text = httpx.get(f"http://{HOST}:{port}/metrics", timeout=1.0).text
    at = text.find(_LISTS)
    return int(float(text[at + len(_LISTS) :].split("\n", 1)[0])) if at >= 0 else 0


def measure_replicas(options: ReplicaOptions, log_progress: Log = no_log) -> Figures:
    """Requests and times of a rolling restart, and of scaling up and down by one replica."""
    base = Config()
    free = replace(base.serve, port=0, dashboard_port=0)
    figures: Figures = {}
    if "restart" in options.parts:
        config = replace(base, serve=replace(free, replicas=options.replicas))
        with live(config, log_progress) as system:
            figures["restart"] = _restart(system, options, log_progress)
    if "scaling" in options.parts:
        serve = replace(
            free,
            min_replicas=1,
            max_replicas=2,
            target_ongoing=options.target,
            downscale_s=options.down_s,
        )
        with live(replace(base, serve=serve), log_progress) as system:
            figures["scaling"] = _scaling(system, options, log_progress)
    return {
        "what": f"restart: {options.replicas} replicas at {options.high:.0f} requests/s; scaling: 1 to 2 "
        f"replicas, {options.low:.0f}, {options.high:.0f}, {options.low:.0f} requests/s; times in s",
        "figures": figures,
        "comparators": {},
    }


def _restart(system: Live, options: ReplicaOptions, log_progress: Log) -> Figures:
    old, watch = system.replicas(), Watch(system)
    with offered(system, options.high, 2 * _PATIENCE_S, options.seed) as load:
        time.sleep(_LEAD_S)
        asked_s = watch.now_s
        number = restart.request_restart("serve", system.state)
        gone_s = watch.until(lambda pids: not old & pids, "all replicas are new")
        restart.wait(system.state, number, _PATIENCE_S)
        done_s = watch.now_s
        log_progress(f"replaced in {gone_s - asked_s:.0f} s")
        time.sleep(_AFTER_S)
        watch.look()
        sent = load.stop()
    new = [life for pid, life in watch.lives.items() if pid not in old]
    return {
        **counted(sent),
        "replaced_s": round(gone_s - asked_s, 1),
        "said_s": round(done_s - asked_s, 1),  # `recsys restart serve` returned
        "new_replicas": [_times_since(life, asked_s) for life in new],
    }


def _scaling(system: Live, options: ReplicaOptions, log_progress: Log) -> Figures:
    watch = Watch(system)
    with offered(system, options.low, _LEAD_S, options.seed) as load:
        before = load.all()
    first = watch.look()
    up_s = watch.now_s
    with offered(system, options.high, 2 * _PATIENCE_S, options.seed + 1) as load:
        taken_s = watch.until(
            lambda pids: len(pids) > len(first) and watch.answering(pids),
            "a second replica answers",
        )
        log_progress(f"a second replica answers after {taken_s - up_s:.0f} s")
        time.sleep(_AFTER_S)
        during = load.stop()
    down_s = watch.now_s
    with offered(system, options.low, 2 * _PATIENCE_S, options.seed + 2) as load:
        gone_s = watch.until(lambda pids: len(pids) == len(first), "the second replica is gone")
        log_progress(f"one replica less after {gone_s - down_s:.0f} s")
        time.sleep(_AFTER_S)
        after = load.stop()
    new = [life for pid, life in watch.lives.items() if pid not in first]
    return {
        "low_before": counted(before),
        "high": counted(during),
        "low_after": counted(after),
        "up_s": round(taken_s - up_s, 1),
        "down_s": round(gone_s - down_s, 1),
        "new_replicas": [_times_since(life, up_s) for life in new],
    }


def _times_since(life: ReplicaTimes, since_s: float) -> Figures:
    """A replica's times since a request for change."""

    def since(at_s: float | None) -> float | None:
        return None if at_s is None else round(at_s - since_s, 1)

    return {
        "started_s": since(life.seen_s),
        "ready_s": since(life.ready_s),
        "answered_s": since(life.answered_s),
        "gone_s": since(life.gone_s),
        "unready_lists": life.unready_lists,
    }
