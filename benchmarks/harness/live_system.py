"""A whole system for a bench: started as ``recsys up`` starts it, in a temporary folder, with viewers.

The viewers keep learning, sessions and counters busy; the requests of an open loop beside them are counted.
Processes are found by part and command line, as an operator would find them.
"""

import contextlib
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.harness import serve_doors as doors
from benchmarks.harness.commands import Figures, Log
from benchmarks.harness.load_client import Load, Sent, offer_until, post
from benchmarks.harness.worker_processes import collect, end_processes, process_starter
from examples.short_video.world import World
from recsys.client import ApiError, Client
from recsys.config.system_config import Config
from recsys.events.event_types import Impression, decode
from recsys.events.records import EVENTS
from recsys.process.open_log import open_log
from recsys.process.part_process import read_beat
from runtime.supervision import launch_plan as plans
from runtime.supervision import run_file
from runtime.supervision.processes import Identity, kill_session

HOST: Final = "127.0.0.1"
USERS: Final = 1_000
SLOW_START_S: Final = 240.0
_LISTS_PER_S: Final = 1.0  # of the viewers, each with some twelve events
_LOOK_S: Final = 0.25
_WHOLE_LISTS: Final = 5  # consecutive complete lists of a whole system
_STEPS: Final = 2  # new steps of a whole system
_LOG_S: Final = 60.0  # for spooled impressions to arrive


@dataclass(frozen=True)
class HealthTarget:
    """Requirements of a system that counts as whole."""

    replicas: int
    step: int  # minimum served step


class Live:
    """One running system."""

    def __init__(self, config: Config, world: World | None = None) -> None:
        self.config = config
        self.state = Path(config.state)
        self.world = world or World(start_ms=time.time_ns() // 1_000_000)

    @property
    def url(self) -> str:
        return plans.local_api_url(self.config)

    def client(self, admin: bool = False) -> Client:
        key = (self.state / "run" / "admin.key").read_text().strip() if admin else None
        return Client(self.url, admin_key=key, timeout_s=3.0)

    def publish_world(self) -> None:
        """Publishes the items and users that the viewers know."""
        world = self.world
        with self.client(admin=True) as client:
            client.upsert_items({i.item_id: i.fields for i in world.items(world.start_ms)})
            client.upsert_users({u.user_id: u.fields for u in world.users()})

    def leader(self, part: str) -> Identity:
        """Process of a part, as the supervisor started it. Raises RuntimeError when there is none."""
        running = run_file.read(self.state)
        for record in running.parts if running is not None else ():
            if record.name == part and record.process is not None:
                return record.process
        raise RuntimeError(f"part {part} has no process in {self.state}, expected one that runs")

    def processes_matching(self, part: str, words: str) -> list[int]:
        """Processes that a part started whose command lines contain all of these words."""
        return doors.members_matching(self.leader(part), words)

    def replicas(self) -> set[int]:
        """Processes of the replicas; none while Ray is away."""
        with contextlib.suppress(RuntimeError):
            return set(self.processes_matching("ray", doors.REPLICA))
        return set()

    def signal(self, pids: list[int], number: signal.Signals) -> None:
        """Signals processes. Raises RuntimeError when there is none."""
        if not pids:
            raise RuntimeError(f"there is no process to send {number.name} to, expected one")
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def step(self) -> int:
        with self.client() as client:
            return int(client.status()["version"]["step"])

    def unhealthy_reason(self, expected: HealthTarget) -> str:
        """Reason why the system isn't whole; empty when it is."""
        running = run_file.read(self.state)
        if running is None:
            return "nothing runs"
        unready = [part.name for part in running.parts if part.state not in ("ready", "done")]
        if unready:
            return f"not ready: {', '.join(unready)}"
        if (count := len(self.replicas())) != expected.replicas:
            return f"{count} replicas of {expected.replicas}"
        beat = read_beat(self.state / "run" / "serve.json")
        if beat is None or beat.gauges.get("replicas") != expected.replicas:
            return "Serve still starts or ends a replica"
        untrained = {"model"} if not expected.step else set()  # no model before the first step
        with self.client() as client:
            for number in range(_WHOLE_LISTS):
                answer = client.recommend(f"u{number}", 1)
                skipped = set(answer.degraded) - untrained
                if skipped or not answer.items:
                    return f"answers are degraded: {', '.join(skipped) or 'no items'}"
            status = client.status()
        if not status["ready"]:
            return "a replica isn't ready"
        if status["version"]["step"] < expected.step:
            return "nothing was learned since"
        return ""

    def wait_healthy(self, expected: HealthTarget, patience_s: float) -> float | None:
        """Seconds until the system is whole; None when it isn't after ``patience_s``."""
        began_s = time.monotonic()
        while time.monotonic() - began_s < patience_s:
            try:
                if not self.unhealthy_reason(expected):
                    return time.monotonic() - began_s
            except (ApiError, OSError):
                pass  # no answer at this moment
            time.sleep(_LOOK_S)
        return None

    def expected(self) -> HealthTarget:
        """Requirements to be met again after a fault that happens now."""
        try:
            step = self.step()
        except ApiError:
            step = 0
        return HealthTarget(self.config.serve.replicas, step + _STEPS)

    def ends(self) -> list[int]:
        """End offset of each partition of events."""
        log = open_log(self.config)
        try:
            return [log.end(EVENTS, p) for p in range(log.partitions(EVENTS))]
        finally:
            log.close()

    def logged(self, requests: set[str], since: list[int], patience_s: float = _LOG_S) -> Counter[str]:
        """Counts impressions of the requests on the log from ``since`` on: waits until all are there, or for
        ``patience_s``."""
        log, counts, at = open_log(self.config), Counter[str](), list(since)
        until_s = time.monotonic() + patience_s
        try:
            while True:
                for partition, offset in enumerate(at):
                    while records := log.read(EVENTS, partition, offset):
                        offset = records[-1].offset + 1
                        events = (decode(record.value) for record in records)
                        logged = [e.request_id for e in events if isinstance(e, Impression)]
                        counts.update(request for request in logged if request in requests)
                    at[partition] = offset
                if len(counts) == len(requests) or time.monotonic() > until_s:
                    return counts
                time.sleep(_LOOK_S)
        finally:
            log.close()


@contextmanager
def live(config: Config, log_progress: Log) -> Iterator[Live]:
    """Starts a system with viewers in a temporary folder, and ends it. Raises RuntimeError when it can't be
    started or isn't whole in time."""
    from runtime.cli.up import start

    doors.check_platform()
    with ExitStack() as stack:
        stack.enter_context(doors.sigterm_as_exit())
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="recsys-bench-"))
        config = replace(config, state=str(Path(folder) / "state"))
        stack.callback(end, Path(config.state))
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for the figures
            status = start(config, detach=True, viewers=_LISTS_PER_S)
        if status:
            raise RuntimeError(f"`recsys up` ended with {status}, expected 0: see its output above")
        system = Live(plans.read(config.state)[0])
        system.publish_world()
        whole = HealthTarget(config.serve.replicas, 5)
        if system.wait_healthy(whole, SLOW_START_S) is None:
            raise RuntimeError(
                f"after {SLOW_START_S:.0f} s the system isn't whole ({system.unhealthy_reason(whole)}), "
                "expected all parts ready and steps learned: run it with nothing beside it"
            )
        log_progress("a whole system runs")
        yield system


def end(state: Path) -> None:
    """Stops a running system, and kills what is left of it."""
    running = run_file.read(state)
    if running is not None:
        run_file.stop(state, running)
        for leader in [*(run_file.read(state) or running).processes, running.supervisor]:
            kill_session(leader)


def lists_load(live: Live, rate: float, seconds: float, seed: int) -> Load:
    """An open loop of lists for the users."""
    order = np.random.default_rng(seed).permutation(USERS).tolist()
    bodies = [f'{{"user_id":"u{n}","n":10}}'.encode() for n in order]
    requests = [post(HOST, "/v1/recommend", body) for body in bodies]
    return Load(HOST, live.config.serve.port, requests, seconds, rate, seed=seed, noted=True)


@contextmanager
def offered(load: Load) -> "Iterator[Offered]":
    """Sends a load from a process of its own, for its time or until stopped."""
    messages, stop, start = process_starter()
    part = start(offer_until, load, messages, stop)
    try:
        yield Offered(messages, stop, part)
    finally:
        end_processes([part], stop)


class Offered:
    """A running load."""

    def __init__(self, messages: Any, stop: Any, part: Any) -> None:
        self._messages, self._stop, self._part = messages, stop, part

    def stop(self) -> Sent:
        """Stops sending; returns all requests and their outcomes."""
        self._stop.set()
        return self.all()

    def all(self) -> Sent:
        """Returns all requests and their outcomes once everything was sent."""
        sent: Sent = collect(self._messages, "load", 1, [self._part])[0]
        return sent


def counted(sent: Sent) -> Figures:
    """Outcomes of the requests: answered is 200 with items, refused 429 or 503; all others failed."""
    status, due, done = np.array(sent.status), np.array(sent.due), np.array(sent.done)
    good, refused = status == 200, np.isin(status, (429, 503))
    answered = int(good.sum()) - sent.empty
    stages = Counter(stage for _, lacked in sent.notes for stage in lacked)
    figures: Figures = {
        "requests": len(status),
        "answered": answered,
        "answered_share": round(answered / max(1, len(status)), 5),
        "degraded": sent.degraded,
        "without": dict(sorted(stages.items())),
        "refused": int(refused.sum()),
        "failed": int((~good & ~refused).sum()) + sent.empty,
    }
    statuses = Counter(str(code) for code in sent.status if code not in (200, 429, 503))
    figures["failed_by_status"] = dict(sorted(statuses.items()))  # 0: no answer came
    took_ms = 1000 * (done[good] - due[good])
    for name, p in (("p50_ms", 50), ("p99_ms", 99), ("slowest_ms", 100)):
        figures[name] = round(float(np.percentile(took_ms, p)), 1) if good.any() else None
    bad = due[~good]
    figures["bad_for_s"] = round(float(bad.max() - bad.min()), 2) if len(bad) else 0.0
    return figures
