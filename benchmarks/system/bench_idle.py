"""``recsys bench idle``: cores and wake-ups of a running system at rest and with one list a second.

The system is started as ``recsys up`` does, without viewers: that is rest. Then a second one runs as in the
demo, with the control room, a list a second and one candidate that learns the same stream. Beside them, Ray
and Serve alone, with an empty deployment and as many actors: once with Ray's defaults and once with the
intervals that the system sets for Ray and Serve, but with Serve's own proxy instead of HAProxy, and with
what the system leaves out: Ray's autoscaler, log monitor and nine processes for the dashboard's views.
Processor time is that of all threads, so load from elsewhere changes the figures little, but caches and
clock rates do: compare within one run.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks.harness import serve_doors as doors
from benchmarks.harness.commands import Figures, Log, no_log
from benchmarks.harness.live_system import Live, live
from benchmarks.system.thread_usage import (
    Usage,
    command_line,
    read_processes,
    total,
    usage_by,
)
from experiments.promotion.lifecycle import SHADOW
from parameter_server.shard.shard import Shard
from recsys.clock import machine_ms
from recsys.config.system_config import digest, laptop
from recsys.events.records import SCORES
from recsys.features.feature_set_file import feature_set
from recsys.free_ports import free_ports
from recsys.process.open_log import open_log
from runtime.jobs.director_requests import propose
from runtime.supervision import run_file
from runtime.supervision.processes import STATE, end_marked, parts_of
from runtime.supervision.ray_environment import INTERVALS, serve_environment
from training.candidates.registry import Provenance, Registry, plain_config
from training.lines.control import lifecycle_of
from training.lines.line import whole_spec

REST_BAR: Final = 0.08  # cores
DEMO_BAR: Final = 0.3
_SETTLE_S: Final = 15.0  # imports, first readings and caches
_CANDIDATE_S: Final = 120.0
_BARE_S: Final = 120.0  # each for the start and the end of Ray and Serve alone
_GRACE_S: Final = 10.0
_OUTPUT: Final = 2_000  # characters of the output in an error
_VIEWERS: Final = "viewers"
# Ray's processes by words of their command lines, in the order of the search.
_RAY: Final = {
    "gcs_server": "ray: control store",
    "raylet/raylet": "ray: raylet",
    "ray_dashboard": "ray: dashboard",
    "dashboard/dashboard.py": "ray: dashboard",
    "DashboardAgent": "ray: dashboard agent",
    "RuntimeEnvAgent": "ray: runtime environments",
    "log_monitor": "ray: log monitor",
    "autoscaler": "ray: autoscaler",
    "ServeController": "serve: controller",
    "ProxyActor": "serve: proxy",
    "HAProxyManager": "serve: HAProxy manager",
    "haproxy": "serve: HAProxy",
    "ServeReplica Feed": "replica",
    "ServeReplica:": "replica",
    "Shard": "shard",
    "RayTrainWorker": "worker",
    "TrainingRun": "train: controller",
    "SynchronizationActor": "train: synchronization",
    # Of Ray and Serve alone: in place of shards and workers, and of the parts that call Ray.
    "ray::IdleActor": "idle actor",
    "benchmarks.system.bare_serve": "driver",
    "ray::IDLE": "ray: idle worker",
}


@dataclass(frozen=True)
class IdleOptions:
    """Options of the bench. ``seconds`` of each measurement; ``demo``: whether the second system runs;
    ``floor``: whether Ray and Serve alone run."""

    seconds: float = 60.0
    demo: bool = True
    floor: bool = True


def measure_idle(options: IdleOptions, log_progress: Log = no_log) -> Figures:
    """Cores and wake-ups a second in both states, by process, and of Ray and Serve alone."""
    base = laptop()
    config = replace(base, serve=replace(base.serve, port=0, dashboard_port=0))
    figures: Figures = {}
    with live(config, log_progress, viewers=0.0) as system:
        figures["rest"], actors = _measure(system, options.seconds)
    log_progress(f"rest: {figures['rest']['all']}")
    if options.floor:
        tuned = INTERVALS | serve_environment(config, tuned=False)  # without HAProxy
        for name, intervals in (("ray_defaults", {}), ("ray_intervals", tuned)):
            figures[name] = measure_bare(actors, intervals, options.seconds)
            log_progress(f"{name}: {figures[name]['all']}")
    if options.demo:
        with live(config, log_progress, control_room=True) as system:
            _add_candidate(system)
            log_progress("a candidate learns")
            figures["demo"], _ = _measure(system, options.seconds)
        log_progress(f"demo: {figures['demo']['all']}")
    return {"what": "cores and wake-ups a second", "figures": figures | {"met": met(figures)}}


def met(figures: Mapping[str, Any]) -> dict[str, bool]:
    """Whether the measured states keep within their bars."""
    bars = {"rest": REST_BAR, "demo": DEMO_BAR}
    return {
        name: figures[name]["all"]["cores"] <= bar for name, bar in bars.items() if name in figures
    }


def process_name(part: str, line: str) -> str:
    """Name of a process in the figures: that of its part; of Ray's parts by command line."""
    if part not in ("ray", ""):
        return part
    return next((name for words, name in _RAY.items() if words in line), part or "ray: other")


def by_state(groups: Mapping[str, Usage]) -> Figures:
    """Figures of a system: all but the viewers, Ray's and Serve's own processes, and each process.

    Actors of an application aren't Ray's own: replica, shards, workers and the actors of Ray Train, or idle
    ones in their place.
    """
    own = {name: usage for name, usage in groups.items() if name != _VIEWERS}
    foreign = [usage for name, usage in own.items() if name.startswith(("ray: ", "serve: "))]
    order = sorted(groups, key=lambda name: -groups[name].cores)
    return {
        "all": total(own.values()).figures(),
        "of_ray": total(foreign).figures(),
        "processes": {name: groups[name].figures() for name in order},
    }


def _measure(system: Live, seconds: float) -> tuple[Figures, int]:
    """Figures of a running system, and the number of its actors beside those of Serve."""
    figures, names = _measured(lambda: _names(system), seconds)
    actors = sum(
        name in ("shard", "worker") or name.startswith("train: ") for name in names.values()
    )
    return figures, actors


def _measured(
    list_names: Callable[[], dict[int, str]], seconds: float
) -> tuple[Figures, dict[int, str]]:
    """Figures of the processes that run at the end, and names of all that were listed, at the beginning or
    at the end."""
    time.sleep(_SETTLE_S)
    names = list_names()
    before, began_s = read_processes(names), time.monotonic()
    time.sleep(seconds)
    names |= list_names()
    after, passed_s = read_processes(names), time.monotonic() - began_s
    figures = by_state(usage_by(names.__getitem__, before, after, passed_s))
    figures |= {"load_1m": round(os.getloadavg()[0], 2), "seconds": round(passed_s, 1)}
    return figures, names


def _names(system: Live) -> dict[int, str]:
    """Names of all processes of a system; parts in one process have one name."""
    running = run_file.read(system.state)
    assert running is not None, "it runs"
    sharing: dict[int, list[str]] = {}
    for part in running.parts:
        if part.process is not None:
            sharing.setdefault(part.process.pid, []).append(part.name)
    leaders = {"+".join(sharing[p.process.pid]): p.process for p in running.parts if p.process}
    names = {pid: process_name(part, command_line(pid)) for pid, part in parts_of(leaders).items()}
    return names | {running.supervisor.pid: "supervisor"}


def measure_bare(actors: int, intervals: Mapping[str, str], seconds: float) -> Figures:
    """Figures of Ray and Serve alone with these environment variables. Raises RuntimeError where they don't
    start, run or end as they should."""
    with _bare(actors, intervals) as driver:

        def list_names() -> dict[int, str]:
            if driver.poll() is not None:
                raise RuntimeError(
                    f"bare_serve ended with {driver.returncode} meanwhile, expected it to run"
                )
            children = psutil.Process(driver.pid).children(recursive=True)
            pids = [driver.pid, *(child.pid for child in children)]
            return {pid: process_name("", command_line(pid)) for pid in pids}

        return _measured(list_names, seconds)[0]


@contextmanager
def _bare(actors: int, intervals: Mapping[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    """Runs Ray and Serve alone in a folder of their own, and ends them."""
    ports = free_ports()
    # Ray has sockets in it, whose paths must be short.
    short = tempfile.TemporaryDirectory(prefix="rs-", dir="/tmp", ignore_cleanup_errors=True)
    with doors.sigterm_as_exit(), short as folder:
        output, ray = Path(folder) / "bare.out", Path(folder) / "r"
        words = [str(word) for word in (actors, next(ports), next(ports), ray)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        # All processes inherit the mark by which ``end_marked`` finds them.
        environment |= {
            **intervals,
            "RAY_USAGE_STATS_ENABLED": "0",
            STATE: str(Path(folder).resolve()),
        }
        command = [sys.executable, "-m", "benchmarks.system.bare_serve", *words]
        with output.open("wb") as file:
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=file,
                stderr=subprocess.STDOUT,
            )  # fmt: skip
        assert process.stdin is not None
        try:
            wait_ready(process, output, _BARE_S)
            yield process
            process.stdin.close()
            _wait_end(process, output)
        finally:
            with suppress(OSError):
                process.stdin.close()
            end_marked(folder, _GRACE_S)
            process.wait()


def wait_ready(process: "subprocess.Popen[bytes]", output: Path, patience_s: float) -> None:
    """Waits for the line ``ready`` in a process's output. Raises RuntimeError where it ends without one, or
    takes too long."""
    until_s = time.monotonic() + patience_s
    while b"ready" not in output.read_bytes().splitlines():
        if process.poll() is not None or time.monotonic() > until_s:
            raise RuntimeError(
                f"Ray and Serve alone didn't start within {patience_s:.0f} s, exit status "
                f"{process.returncode}, expected a line `ready` from bare_serve: {_end_of(output)}"
            )
        time.sleep(0.2)


def _wait_end(process: "subprocess.Popen[bytes]", output: Path) -> None:
    """Waits until the process ends by itself. Raises RuntimeError where it doesn't, or fails."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(_BARE_S)
    if process.returncode != 0:
        raise RuntimeError(
            f"the exit status of bare_serve is {process.returncode} within {_BARE_S:.0f} s, expected 0: "
            f"{_end_of(output)}"
        )


def _end_of(output: Path) -> str:
    return output.read_text(errors="replace")[-_OUTPUT:]


def _add_candidate(system: Live) -> None:
    """Proposes a newborn model, and waits until it scores the stream as a shadow. Raises RuntimeError where
    it doesn't."""
    from recsys.model.model import build_model

    config, features, name = system.config, feature_set(system.config), "cand-idle"
    model = build_model(features, config.model)
    arrays, meta = Shard(whole_spec(config, "cand"), model.read_dense()).export()
    log, now_ms = open_log(config), machine_ms()
    try:
        provenance = Provenance(
            name=name, kind="offline", feature_set=features.digest, model=digest(config.model),
            config=plain_config(config.model), code="", made_ms=now_ms, from_ms=0, until_ms=now_ms,
            log_id=log.id,
        )  # fmt: skip
        folder = system.state / "registry"
        Registry(folder).add(provenance, dict(arrays), dict(meta), int(meta["step"]))
        propose(config, log, name, folder)
        until_s = time.monotonic() + _CANDIDATE_S
        while not log.end(SCORES, 0) or lifecycle_of(log).candidates[name].stage != SHADOW:
            if time.monotonic() > until_s:
                raise RuntimeError(
                    f"after {_CANDIDATE_S:.0f} s the candidate has scored nothing, expected a shadow: see "
                    f"{system.state}/run/shadow.log"
                )
            time.sleep(0.5)
    finally:
        log.close()
