"""``recsys bench serve``: requests a second and latency of the whole answer, at four doors of one app.

The doors: the replica's own port (Serve's direct ingress), the public one behind HAProxy, the same app object
behind bare uvicorn, and Serve as it comes with its own proxy. The first three take turns in one run over one
state; the last one is started when they have ended, for its settings are those of a whole Ray head.

The peak is what a few clients get that options again once they are answered. Latencies are those of an open loop
at half of it. See ``load_client`` for how requests are sent, ``bench_serve_state`` for what is answered from.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from benchmarks.answers.bench_serve_stages import stages
from benchmarks.answers.bench_serve_state import USERS, Built, build
from benchmarks.answers.serve_load import Door, Figures, ServeOptions, bodies, send
from benchmarks.harness import serve_doors as doors
from benchmarks.harness.worker_processes import answers, end, ways
from recsys.config.system_config import Config

CLIENTS: Final = (4, 16)  # of the closed loop: the better of the two is the peak
ROUNDS: Final = 3


def measure_serve(options: ServeOptions, say: Callable[[str], None] = lambda text: None) -> Figures:
    """The figures of all doors. ``say`` is told what is going on."""
    doors.check_platform()
    with ExitStack() as stack:
        stack.enter_context(doors.ended_by_term())
        stack.enter_context(doors.one_thread_each())
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="recsys-bench-"))
        config, plan = doors.planned(doors.bench_config(folder, options.candidates, options.shards))
        began = time.monotonic()
        built = build(config, options.items, options.seed, time.time_ns() // 1_000_000)
        say(f"{options.items} items, built in {time.monotonic() - began:.0f} s")
        stack.enter_context(doors.parts(config, ("valkey",)))
        doors.fill_sessions(config, built.sessions)
        found, more = _ours(config, options, say)
        more |= _stages(config, options)
        if options.plain:
            doors.plainly(config, plan)
            found |= _plain(config, options, say)
    figures = found.pop("direct") | more
    return {"what": _what(options, built), "figures": figures, "comparators": found}


def _ours(
    config: Config, options: ServeOptions, say: Callable[[str], None]
) -> tuple[dict[str, Figures], Figures]:
    """The replica's own port, the public one and bare uvicorn, in turn; then, once uvicorn has ended (its app
    follows the log too), what else is asked."""
    from benchmarks.answers.bench_serve_training import with_shadow, with_training

    with doors.parts(config, ("ray", "serve")) as running:
        pid = doors.replica_pid(running["ray"])
        ours = [
            Door("direct", doors.direct_port(pid), pid),
            Door("haproxy", config.serve.port, pid),
        ]
        with _uvicorn(config) as bare:
            say("ready: " + ", ".join(f"{door.name} at {door.port}" for door in (*ours, bare)))
            found = _measure([*ours, bare], options, say)
            _remember(found, [*ours, bare])
        for door in ours:
            its, theirs = found[door.name], found[bare.name]
            its["of_uvicorn"] = _ratio(its["rounds"], theirs["rounds"])
        more: Figures = {}
        if options.overload:
            more["overload"] = {door.name: _overload(door, found[door.name], options) for door in ours}
        if options.training:
            more["training"] = with_training(config, ours[0], options, say)
        if options.shadow:
            more["shadow"] = with_shadow(config, ours[0], options, say)
    return found, more


def _remember(found: dict[str, Figures], its: list[Door]) -> None:
    for door in its:
        found[door.name]["rss_mb"], found[door.name]["peak_rss_mb"] = doors.memory_mb(door.pid)


def _plain(config: Config, options: ServeOptions, say: Callable[[str], None]) -> dict[str, Figures]:
    with doors.parts(config, ("ray", "serve")) as running:
        door = Door("serve_proxy", config.serve.port, doors.replica_pid(running["ray"]))
        found = _measure([door], options, say)
        _remember(found, [door])
    return found


@contextmanager
def _uvicorn(config: Config) -> Iterator[Door]:
    told, stop, start = ways(True)
    port = doors.free_port()
    part = start(doors.uvicorn, config, port, told, stop)
    try:
        pid = answers(told, "uvicorn", 1, [part])[1]
        yield Door("uvicorn", port, pid)
    finally:
        end([part], stop)


def _measure(its: list[Door], options: ServeOptions, say: Callable[[str], None]) -> dict[str, Figures]:
    """Each door's peak, taken in turns and in the middle of the rounds, then its latency at a rate."""
    peaks: dict[str, list[float]] = {door.name: [] for door in its}
    for door in its:
        send(door, options, 1.0, clients=CLIENTS[0])  # what is compiled or opened at first use
    for number in range(ROUNDS):
        for door in its:
            best = max(
                send(door, options, options.seconds / ROUNDS, clients=clients)["requests_per_s"]
                for clients in CLIENTS
            )
            peaks[door.name].append(best)
        say(f"round {number + 1}: " + ", ".join(f"{n} {p[-1]:.0f}/s" for n, p in peaks.items()))
    found = {}
    for door in its:
        peak = statistics.median(peaks[door.name])
        rate = options.rate or peak / 2
        at_rate = send(door, options, options.seconds, rate=rate)
        at_rate["rate"] = round(rate, 1)
        del at_rate["requests_per_s"]
        found[door.name] = {"requests_per_s": peak, "rounds": peaks[door.name]} | at_rate
    return found


def _ratio(ours: list[float], theirs: list[float]) -> float:
    """The median over the rounds: the two of a round saw the same machine."""
    ratios = (our / their for our, their in zip(ours, theirs, strict=True))
    return round(statistics.median(ratios), 3)


def _overload(door: Door, before: Figures, options: ServeOptions) -> Figures:
    """More than the door can take: what comes through, how soon, and what it does to memory."""
    rss_mb, _ = doors.memory_mb(door.pid)
    rate = options.overload * before["requests_per_s"]
    found = send(door, options, options.seconds, rate=rate)
    goodput = found.pop("requests_per_s")
    return found | {
        "rate": round(rate, 1),
        "goodput_per_s": goodput,
        "goodput_of_peak": round(goodput / before["requests_per_s"], 3),
        "p99_of_half_peak": round(found["p99_ms"] / before["p99_ms"], 3)
        if found["p99_ms"]
        else None,
        "grown_mb": round(doors.memory_mb(door.pid)[0] - rss_mb, 1),
    }


def _stages(config: Config, options: ServeOptions) -> Figures:
    """Microseconds of a request by stage, with nothing beside it."""
    told, stop, start = ways(True)
    part = start(stages, config, bodies(options), options.seconds, told)
    try:
        found: Figures = answers(told, "stages", 1, [part])[0]
    finally:
        end([part], stop)
    return found


def _what(options: ServeOptions, built: Built) -> str:
    return (
        f"{options.items} items, {options.candidates} candidates, lists of 10, {USERS} users with sessions of "
        f"{built.session_bytes} bytes; peak: the median of {ROUNDS} rounds, the better of {CLIENTS} clients; "
        f"latencies in ms of an open loop at half of the peak or at --rate, from the intended time"
    )
