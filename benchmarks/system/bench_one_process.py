"""``recsys bench one_process``: a ``Recommender``, ``recsys serve`` and ``recsys up`` on one state folder.

A Recommender publishes the simulated world and learns some lists. Then each way to run opens the folder:
seconds from the start of its process to the first answer, memory (proportional set size), and what it
answers and learns. The servers get lists and events at once, at a rate; the Recommender serves one caller.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.harness import serve_doors as doors
from benchmarks.harness.commands import Figures, Log
from benchmarks.harness.live_system import HOST, USERS, Live, counted, end, lists_load, offered
from benchmarks.harness.load_client import Load, post
from benchmarks.index.bench_start import memory_mb
from examples.short_video.world import World
from recsys.client import ApiError, Client, Recommendations
from recsys.config.loader import load
from recsys.events.event_types import Engagement
from recsys.events.records import EVENTS, EXAMPLES
from recsys.free_ports import free_ports
from recsys.process.open_log import open_log
from recsys.process.part_process import read_beat
from runtime.supervision import run_file
from runtime.supervision.processes import members

_N: Final = 10
_REQUEST: Final = 5  # events in a request of the load
_LISTS_PER_S: Final = 200  # that a Recommender is prepared to learn: more than it can
_START_S: Final = 120.0
_READ_S: Final = 60.0
_LOOK_S: Final = 0.02
_READS: Final = {"session-fold": EVENTS, "counters": EVENTS, "joiner": EVENTS, "sequencer": EXAMPLES}
_TOPICS: Final = (EVENTS, EXAMPLES)
# What a user's program does; the rest of the bench is imported after its first answer.
_PROGRAM: Final = """
import sys, time
from recsys import Recommender
with Recommender(sys.argv[1], config=sys.argv[2]) as feed:
    feed.recommend("u1", n=10)
    answered_s = time.time()
    from benchmarks.system.bench_one_process import report_caller
    report_caller(feed, answered_s, *map(float, sys.argv[3:]))
"""


@dataclass(frozen=True)
class OneProcessOptions:
    """``lists`` and ``events`` a second are offered to the servers for ``seconds``; ``learned`` lists come
    before."""

    learned: int = 300
    lists: float = 100.0
    events: float = 500.0
    seconds: float = 20.0
    seed: int = 0


def measure_one_process(options: OneProcessOptions, log_progress: Log) -> Figures:
    """Figures by way to run."""
    doors.check_platform()
    with ExitStack() as stack:
        stack.enter_context(doors.sigterm_as_exit())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="recsys-bench-")))
        free = free_ports()
        file, state = folder / "run.yaml", folder / "state"
        file.write_text(f"serve: {{port: {next(free)}, dashboard_port: {next(free)}}}\n")
        log_progress(f"a Recommender publishes the world and learns {options.learned} lists")
        _caller(state, file, options.learned, 0.0)
        figures: Figures = {"recommender": _caller(state, file, 0, options.seconds / 3)}
        log_progress(f"recommender: {figures['recommender']}")
        for name, command in (("serve", ["serve"]), ("up", ["up", "--detach"])):
            with _server(command, file, state) as (system, start):
                figures[name] = start | _under_load(system, options)
            log_progress(f"{name}: {figures[name]}")
    what = f"{options.lists:g} lists and {options.events:g} events a second to each server"
    return {"what": what, "figures": figures}


# --- a Recommender ---


def _caller(state: Path, file: Path, learned: int, seconds: float) -> Figures:
    """Figures of a program that opens the folder."""
    began_s = time.time()
    command = [sys.executable, "-c", _PROGRAM, str(state), str(file), str(learned), str(seconds)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    figures: Figures = json.loads(done.stdout)
    return {"first_answer_s": round(figures.pop("answered_s") - began_s, 2)} | figures


def report_caller(feed: Client, answered_s: float, learned: float, seconds: float) -> None:
    """Prints what an opened Recommender does in ``seconds``, after it has learned some lists."""
    figures: Figures = {"answered_s": answered_s}
    if learned:
        world = _world()
        feed.upsert_items({i.item_id: i.fields for i in world.items(world.start_ms)})
        feed.upsert_users({u.user_id: u.fields for u in world.users()})
        for number in range(int(learned)):
            feed.send_events(_swipes(feed, number))
    if seconds:
        figures["lists_per_s"] = _rate(seconds, lambda n: bool(feed.recommend(_user(n), _N).items))
        lists = [_swipes(feed, number) for number in range(round(_LISTS_PER_S * seconds))]
        views = [view for swipes in lists[::2] for view in swipes]
        figures["events_per_s_one_a_call"] = _rate(seconds, lambda n: _send(feed, views[n : n + 1]))
        figures["events_per_s_list_by_list"] = _rate(seconds, lambda n: _send(feed, lists[2 * n + 1]))
    print(json.dumps(figures | {"pss_mb": round(memory_mb("self")["Pss"])}))


def _send(feed: Client, events: Sequence[Engagement]) -> int:
    return feed.send_events(events).accepted


def _rate(seconds: float, act: Callable[[int], int]) -> float:
    """Count of ``act`` a second, called one time after the other."""
    began_s, number, count = time.perf_counter(), 0, 0
    while time.perf_counter() - began_s < seconds:
        count += act(number)
        number += 1
    return round(count / (time.perf_counter() - began_s), 1)


# --- a server ---


@contextmanager
def _server(command: list[str], file: Path, state: Path) -> Iterator[tuple[Live, Figures]]:
    """A server on the folder, once it answers, with the seconds that it took; it is stopped after."""
    recsys = str(Path(sys.executable).with_name("recsys"))
    began_s = time.time()
    options = ["--config", str(file), "--state", str(state)]
    started = subprocess.Popen([recsys, *command, *options], stdout=sys.stderr)
    system = Live(replace(load(str(file)), state=str(state)))
    try:
        while not _answers(system):
            if time.time() - began_s > _START_S or started.poll():
                raise RuntimeError(f"no answer of `recsys {command[0]}` after {time.time() - began_s:.0f} s")
            time.sleep(_LOOK_S)
        yield system, {"first_answer_s": round(time.time() - began_s, 2)}
    finally:
        end(state)
        started.wait()


def _answers(system: Live) -> bool:
    with contextlib.suppress(ApiError), system.client() as client:
        return client.health() and bool(client.recommend("u1", _N).items)
    return False


def _under_load(system: Live, options: OneProcessOptions) -> Figures:
    """Offers lists and events in processes of their own; waits until all is learned."""
    with system.client() as client:
        lists = int(options.events * options.seconds / _N)
        events = [event for number in range(lists) for event in _swipes(client, number)]
    _wait_read(system, _ends(system))
    bodies = [events[n : n + _REQUEST] for n in range(0, len(events), _REQUEST)]
    requests = [post(HOST, "/v1/events", msgspec.json.encode({"events": body})) for body in bodies]
    rate, port = options.events / _REQUEST, system.config.serve.port
    events_load = Load(HOST, port, requests, options.seconds, rate, seed=options.seed + 1)
    with (
        offered(lists_load(system, options.lists, options.seconds, options.seed)) as asked,
        offered(events_load) as sent,
    ):
        answers, accepted = asked.all(), sent.all().status.count(202)
    began_s, ends = time.monotonic(), _ends(system)
    unread = _unread(system, ends)
    _wait_read(system, ends)
    sizes = [memory_mb(pid)["Pss"] for pid in _processes(system)]
    return {
        "lists": counted(answers), "events_sent": _REQUEST * len(events_load.requests),
        "events_accepted": _REQUEST * accepted, "unread_at_the_end": max(0, unread),
        "read_after_s": round(time.monotonic() - began_s, 2),
        "pss_mb": round(sum(sizes)), "processes": len(sizes),
    }  # fmt: skip


def _unread(system: Live, ends: Mapping[str, int]) -> int:
    """The largest number of records before these ends that a fold hasn't read."""
    places = {}
    for name, topic in _READS.items():
        beat = read_beat(system.state / "run" / f"{name}.json")
        places[name] = sum(beat.offsets.get(topic, [])) if beat else 0
    return max(ends[topic] - places[name] for name, topic in _READS.items())


def _ends(system: Live) -> dict[str, int]:
    log = open_log(system.config)
    try:
        return {topic: sum(log.end(topic, p) for p in range(log.partitions(topic))) for topic in _TOPICS}
    finally:
        log.close()


def _wait_read(system: Live, ends: Mapping[str, int]) -> None:
    """Returns once every fold has read so far. Raises RuntimeError."""
    until_s = time.monotonic() + _READ_S
    while left := max(0, _unread(system, ends)):
        if time.monotonic() > until_s:
            raise RuntimeError(f"{left} records are unread after {_READ_S:.0f} s, expected 0")
        time.sleep(_LOOK_S)


def _processes(system: Live) -> set[int]:
    running = run_file.read(system.state)
    leaders = {running.supervisor, *running.processes} if running else set()
    return {pid for leader in leaders for pid in [leader.pid, *members(leader)]}


# --- events ---


def _world(seed: int = 0) -> World:
    return World(seed, start_ms=time.time_ns() // 1_000_000)


def _user(number: int) -> str:
    return f"u{number % USERS}"


def _swipes(client: Client, number: int) -> list[Engagement]:
    """A view of each item of a new list."""
    user_id = _user(number)
    answer = client.recommend(user_id, _N)
    return [_view(answer, user_id, rank) for rank in range(len(answer.items))]


def _view(answer: Recommendations, user_id: str, rank: int) -> Engagement:
    return Engagement(
        time_ms=time.time_ns() // 1_000_000, event_id=uuid.uuid4().hex, request_id=answer.request_id,
        user_id=user_id, item_id=answer.items[rank].item_id, kind="view", watch_ms=700 * (rank + 1),
        token=answer.token or msgspec.UNSET,
    )  # fmt: skip
