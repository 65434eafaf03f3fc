"""``recsys bench faults``: answered requests, and impressions on the log, while one part after the other is
killed, stopped or made unwritable.

A system of its own is started as ``recsys up`` starts it. For each fault an open loop asks for lists; after
some seconds the fault begins, and ends by itself or is repaired. The next one follows once the system is
whole again: every part ready, as many replicas as configured, answers not degraded, and new steps learned.

Parts inside the replica (index, ranker) can't be broken from outside:
``tests/training/joining/test_pressure.py`` breaks these at their adapters.
"""

import signal
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Final

import psutil

from benchmarks.harness.commands import Figures, Log, no_log
from benchmarks.harness.live_system import Live, counted, lists_load, live, offered
from benchmarks.harness.serve_doors import REPLICA
from recsys.config.log_config import LogConfig
from recsys.config.system_config import Config
from runtime.supervision.launch_plan import EMBEDDED_KAFKA
from runtime.supervision.processes import kill_session

BAR: Final = 0.999
_LEAD_S: Final = 3.0  # of load before the fault
_SEEN_S: Final = 1.0  # time for the supervisor to notice a fault
_WHOLE_S: Final = 150.0
Mend = Callable[[], None]


@dataclass(frozen=True)
class Fault:
    """``begin`` breaks something and returns its repair, which is called after ``lasts_s``."""

    name: str
    about: str
    begin: Callable[[Live], Mend]
    lasts_s: float = 0.0
    log: str = ""  # "sqlite" or "kafka": only over that one
    door: bool = False  # a single component on every request's way
    last: bool = False  # nothing works afterwards


@dataclass(frozen=True)
class FaultOptions:
    """Options of the bench. ``seconds``: of load for each fault."""

    rate: float = 100.0
    seconds: float = 32.0
    replicas: int = 2
    kafka: bool = False
    only: tuple[str, ...] = ()
    seed: int = 0


def _nothing() -> None:
    pass


def _kill_part(name: str) -> Callable[[Live], Mend]:
    """Kills a part's process and all that it started."""

    def begin(system: Live) -> Mend:
        kill_session(system.leader(name))
        return _nothing

    return begin


def _kill_within(part: str, words: str, most: int = 1) -> Callable[[Live], Mend]:
    def begin(system: Live) -> Mend:
        system.signal(system.processes_matching(part, words)[:most], signal.SIGKILL)
        return _nothing

    return begin


def _hang_within(part: str, words: str) -> Callable[[Live], Mend]:
    def begin(system: Live) -> Mend:
        pids = system.processes_matching(part, words)
        system.signal(pids, signal.SIGSTOP)

        def mend() -> None:
            with suppress(RuntimeError):
                system.signal(pids, signal.SIGCONT)

        return mend

    return begin


def _lock_log(system: Live) -> Mend:
    """Holds the single write lock of ``events``."""
    file = system.state / "log" / "events.sqlite"
    db = sqlite3.connect(file, timeout=30.0, isolation_level=None)
    db.execute("BEGIN IMMEDIATE")

    def mend() -> None:
        db.execute("ROLLBACK")
        db.close()

    return mend


def _fill_disk(system: Live) -> Mend:
    """Stops replicas from growing files: neither the log nor the disk spool."""
    processes = [psutil.Process(pid) for pid in system.replicas()]
    before = [process.rlimit(psutil.RLIMIT_FSIZE) for process in processes]
    for process, (_, hard) in zip(processes, before, strict=True):
        process.rlimit(psutil.RLIMIT_FSIZE, (1, hard))

    def mend() -> None:
        for process, limit in zip(processes, before, strict=True):
            with suppress(psutil.Error):
                process.rlimit(psutil.RLIMIT_FSIZE, limit)

    return mend


# In order of execution: the fastest recovery first.
FAULTS: Final = (
    Fault("nothing", "nothing is done: what the machine costs by itself", lambda system: _nothing),
    Fault("valkey", "the session store is killed", _kill_part("valkey")),
    Fault("valkey-hangs", "the session store answers nobody for 8 s",
          _hang_within("valkey", "valkey-server"), 8.0),
    Fault("session-fold", "the session fold is killed", _kill_part("session-fold")),
    Fault("counters", "the counters are killed", _kill_part("counters")),
    Fault("joiner", "the joiner is killed", _kill_part("joiner")),
    Fault("sequencer", "the sequencer is killed", _kill_part("sequencer")),
    Fault("archive", "the archive is killed", _kill_part("archive")),
    Fault("director", "the director is killed", _kill_part("director")),
    Fault("log-locked", "another process holds the log's write lock for 10 s", _lock_log, 10.0, "sqlite"),
    Fault("disk-full", "no replica can write for 10 s: neither log nor kept impressions",
          _fill_disk, 10.0, "sqlite"),
    Fault("broker-hangs", "the broker answers nobody for 8 s",
          _hang_within("broker", "--listener-url"), 8.0, "kafka"),
    Fault("worker", "a training worker is killed", _kill_within("ray", "RayTrainWorker")),
    Fault("trainer", "the trainer is killed", _kill_part("trainer")),
    Fault("shard", "a shard is killed", _kill_within("ray", "ShardActor")),
    Fault("shards", "the part that keeps the shards is killed", _kill_part("shards")),
    Fault("controller", "Serve's controller is killed", _kill_within("ray", "ServeController")),
    Fault("serve", "the part that drives Serve is killed", _kill_part("serve")),
    Fault("replica", "one of the replicas is killed", _kill_within("ray", REPLICA)),
    Fault("haproxy", "the proxy is killed", _kill_within("ray", "haproxy.cfg", 9), door=True),
    Fault("ray", "the Ray head and all that it runs are killed", _kill_part("ray"), door=True),
    Fault("broker", "the broker is killed, and the log is lost with it", _kill_part("broker"), 0.0,
          "kafka", last=True),
)  # fmt: skip


def chosen(only: Sequence[str], kafka: bool) -> list[Fault]:
    """Faults of a run. Raises ValueError for an unknown name, or one of the other log."""
    kind = "kafka" if kafka else "sqlite"
    faults = [fault for fault in FAULTS if fault.log in ("", kind)]
    unknown = sorted(set(only) - {fault.name for fault in faults})
    if unknown:
        raise ValueError(
            f"--only names {', '.join(unknown)}, expected of {', '.join(f.name for f in faults)} over {kind}"
        )
    return [fault for fault in faults if not only or fault.name in only]


def measure_faults(options: FaultOptions, log_progress: Log = no_log) -> Figures:
    """A row for each fault, and the rows below the bar."""
    faults = chosen(options.only, options.kafka)
    base = Config()
    config = replace(
        base,
        serve=replace(base.serve, port=0, dashboard_port=0, replicas=options.replicas),
        log=LogConfig(url=EMBEDDED_KAFKA) if options.kafka else base.log,
    )
    rows: dict[str, Figures] = {}
    with live(config, log_progress) as system:
        for number, fault in enumerate(faults):
            rows[fault.name] = row = _row(system, fault, options, options.seed + number)
            log_progress(
                f"{fault.name}: {row['answered']} of {row['requests']} answered, {row['degraded']} degraded, "
                f"{row['refused']} refused, {row['failed']} failed; whole after {row['whole_after_s']} s, "
                f"{row['logged']} impressions on the log"
            )
            if row["whole_after_s"] is None and not fault.last:
                log_progress(
                    f"not whole again: {system.unhealthy_reason(system.expected())}; the others are left out"
                )
                break
    return {
        "what": f"{options.rate:.0f} requests/s for {options.seconds:.0f} s each, {options.replicas} "
        f"replicas, log: {'kafka' if options.kafka else 'sqlite'}; the fault comes after {_LEAD_S:.0f} s",
        "figures": {"faults": rows, **judged(rows, faults)},
        "comparators": {},
    }


def judged(rows: dict[str, Figures], faults: Sequence[Fault]) -> Figures:
    """Rows below the bar; ``doors``: single components on every request's way."""
    bad = [name for name, row in rows.items() if row["answered_share"] < BAR]
    doors = [fault.name for fault in faults if fault.door]
    return {
        "bar": BAR,
        "below": [name for name in bad if name not in doors],
        "doors_below": [name for name in bad if name in doors],
        "unlogged": sum(row["unlogged"] or 0 for row in rows.values()),
        "missing": [fault.name for fault in faults if fault.name not in rows],
    }


def _row(system: Live, fault: Fault, options: FaultOptions, seed: int) -> Figures:
    """One fault under load. The load always has the same length."""
    expected, since = system.expected(), system.ends()
    with offered(lists_load(system, options.rate, options.seconds, seed)) as load:
        time.sleep(_LEAD_S)
        began_s = time.monotonic()
        with _broken(system, fault):
            time.sleep(fault.lasts_s)
        whole_s = None
        if not fault.last:
            time.sleep(_SEEN_S)
            later = system.expected()  # steps in flight have arrived
            expected = later if later.step > expected.step else expected
            passed_s = time.monotonic() - began_s
            waited_s = system.wait_healthy(expected, _WHOLE_S)
            whole_s = None if waited_s is None else round(passed_s + waited_s, 1)
        sent = load.all()
    requests = {request for request, _ in sent.notes}
    figures = {"about": fault.about, **counted(sent), "whole_after_s": whole_s}
    if fault.last:  # the log is lost
        return figures | {"logged": None, "unlogged": None, "logged_twice": None}
    logged = system.logged(requests, since)
    return figures | {
        "logged": len(logged),
        "unlogged": len(requests) - len(logged),
        "logged_twice": sum(count > 1 for count in logged.values()),
    }


@contextmanager
def _broken(system: Live, fault: Fault) -> Iterator[None]:
    mend = fault.begin(system)
    try:
        yield
    finally:
        mend()
