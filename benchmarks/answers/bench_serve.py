"""``recsys bench serve``: requests a second and latency of whole answers, at four doors of one app.

The doors: the replica's own port (Serve's direct ingress), the public port behind HAProxy, the same app
object behind bare uvicorn, and Serve's default proxy. The first three take turns in one run over one state;
the last starts after they end, because its settings concern a whole Ray head.

The peak is the rate of a closed loop with a few clients. Latencies are those of an open loop at half of the
peak. ``load_client`` sends the requests, ``bench_serve_state`` builds the state.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from benchmarks.answers.bench_serve_stages import stages
from benchmarks.answers.bench_serve_state import USERS, BenchState, build
from benchmarks.answers.serve_load import Door, ServeOptions, bodies, send
from benchmarks.harness import serve_doors as doors
from benchmarks.harness.commands import Figures, Log, no_log
from benchmarks.harness.worker_processes import collect, end_processes, process_starter, run_process
from recsys.config.system_config import Config
from recsys.free_ports import free_ports

CLIENTS: Final = (4, 16)  # of the closed loop; the better one gives the peak
ROUNDS: Final = 3


def measure_serve(options: ServeOptions, log_progress: Log = no_log) -> Figures:
    """Figures of all doors."""
    doors.check_platform()
    with ExitStack() as stack:
        stack.enter_context(doors.sigterm_as_exit())
        stack.enter_context(doors.one_thread_each())
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="recsys-bench-"))
        config, plan = doors.write_plan(doors.bench_config(folder, options.candidates))
        began = time.monotonic()
        built = build(config, options.items, options.seed, time.time_ns() // 1_000_000)
        log_progress(f"{options.items} items, built in {time.monotonic() - began:.0f} s")
        stack.enter_context(doors.parts(config, ("valkey",)))
        doors.fill_sessions(config, built.sessions)
        doors_figures, more = _own_doors(config, options, log_progress)
        more |= _stages(config, options)
        doors.use_default_serve(config, plan)
        doors_figures |= _serve_proxy(config, options, log_progress)
    figures = doors_figures.pop("direct") | more
    return {"what": _what(options, built), "figures": figures, "comparators": doors_figures}


def _own_doors(
    config: Config, options: ServeOptions, log_progress: Log
) -> tuple[dict[str, Figures], Figures]:
    """Figures of the replica's own port, the public port and bare uvicorn, in turns; then of the optional
    measurements, once uvicorn has ended (its app follows the log too)."""
    with doors.parts(config, ("ray", "serve")) as running:
        pid = doors.replica_pid(running["ray"])
        own_doors = [Door("direct", doors.direct_port(pid), pid), Door("haproxy", config.serve.port, pid)]
        with _uvicorn(config) as bare:
            log_progress("ready: " + ", ".join(f"{door.name} at {door.port}" for door in (*own_doors, bare)))
            figures = _measure([*own_doors, bare], options, log_progress)
            _add_memory(figures, [*own_doors, bare])
        for door in own_doors:
            measured, baseline = figures[door.name], figures[bare.name]
            measured["of_uvicorn"] = _ratio(measured["rounds"], baseline["rounds"])
        more: Figures = {}
        if options.overload:
            more["overload"] = {door.name: _overload(door, figures[door.name], options) for door in own_doors}
    return figures, more


def _add_memory(figures: dict[str, Figures], measured_doors: list[Door]) -> None:
    for door in measured_doors:
        figures[door.name]["rss_mb"], figures[door.name]["peak_rss_mb"] = doors.memory_mb(door.pid)


def _serve_proxy(config: Config, options: ServeOptions, log_progress: Log) -> dict[str, Figures]:
    with doors.parts(config, ("ray", "serve")) as running:
        door = Door("serve_proxy", config.serve.port, doors.replica_pid(running["ray"]))
        figures = _measure([door], options, log_progress)
        _add_memory(figures, [door])
    return figures


@contextmanager
def _uvicorn(config: Config) -> Iterator[Door]:
    messages, stop, start = process_starter()
    port = next(free_ports())
    part = start(doors.uvicorn, config, port, messages, stop)
    try:
        pid = collect(messages, "uvicorn", 1, [part])[1]
        yield Door("uvicorn", port, pid)
    finally:
        end_processes([part], stop)


def _measure(measured_doors: list[Door], options: ServeOptions, log_progress: Log) -> dict[str, Figures]:
    """Each door's peak, taken in turns as the median of the rounds, then its latency at a rate."""
    peaks: dict[str, list[float]] = {door.name: [] for door in measured_doors}
    for door in measured_doors:
        send(door, options, 1.0, clients=CLIENTS[0])  # warm-up: compilation and connections
    for number in range(ROUNDS):
        for door in measured_doors:
            best = max(
                send(door, options, options.seconds / ROUNDS, clients=clients)["requests_per_s"]
                for clients in CLIENTS
            )
            peaks[door.name].append(best)
        log_progress(f"round {number + 1}: " + ", ".join(f"{n} {p[-1]:.0f}/s" for n, p in peaks.items()))
    figures = {}
    for door in measured_doors:
        peak = statistics.median(peaks[door.name])
        rate = options.rate or peak / 2
        at_rate = send(door, options, options.seconds, rate=rate)
        at_rate["rate"] = round(rate, 1)
        del at_rate["requests_per_s"]
        figures[door.name] = {"requests_per_s": peak, "rounds": peaks[door.name]} | at_rate
    return figures


def _ratio(rates: list[float], baseline: list[float]) -> float:
    """Median of the ratios within each round, whose two rates saw the same machine."""
    ratios = (rate / baseline_rate for rate, baseline_rate in zip(rates, baseline, strict=True))
    return round(statistics.median(ratios), 3)


def _overload(door: Door, before: Figures, options: ServeOptions) -> Figures:
    """Goodput, latency and memory at more than the door's peak."""
    rss_mb, _ = doors.memory_mb(door.pid)
    rate = options.overload * before["requests_per_s"]
    figures = send(door, options, options.seconds, rate=rate)
    goodput = figures.pop("requests_per_s")
    return figures | {
        "rate": round(rate, 1),
        "goodput_per_s": goodput,
        "goodput_of_peak": round(goodput / before["requests_per_s"], 3),
        "p99_of_half_peak": round(figures["p99_ms"] / before["p99_ms"], 3) if figures["p99_ms"] else None,
        "grown_mb": round(doors.memory_mb(door.pid)[0] - rss_mb, 1),
    }


def _stages(config: Config, options: ServeOptions) -> Figures:
    """Microseconds of a request by stage, without other load."""
    figures: Figures = run_process("stages", stages, config, bodies(options), options.seconds)
    return figures


def _what(options: ServeOptions, built: BenchState) -> str:
    return (
        f"{options.items} items, {options.candidates} candidates, lists of 10, {USERS} users with sessions "
        f"of {built.session_bytes} bytes; peak: median of {ROUNDS} rounds, better of {CLIENTS} clients; "
        "latencies in ms of an open loop at half of the peak or at --rate, from the intended time"
    )
