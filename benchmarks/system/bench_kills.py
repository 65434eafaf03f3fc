"""``recsys bench kills``: kill -9 of every part of a live system, alone and in pairs, while events with known
ids arrive. At the end nothing that was acknowledged may be lost or counted twice.

The next kill comes once the system is whole again (all parts ready, answers complete, new steps learned), or
after 25 s, if what it kills is there again. The log itself is SQLite and has no process; its writers
are among the parts. An embedded broker keeps its log in memory and isn't part of this bench.
"""

import contextlib
import os
import random
import signal
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Final

from benchmarks.harness.audited_system import AuditedSystem, audited_config
from benchmarks.harness.commands import Figures, Log, no_log
from benchmarks.harness.live_system import HealthTarget, Live
from benchmarks.harness.serve_doors import REPLICA
from runtime.supervision import run_file
from runtime.supervision.processes import Identity, alive, identify

SUPERVISOR: Final = "supervisor"
# Processes that Ray runs, by words of their command lines.
_WITHIN: Final = {
    "shard": "ShardActor", "replica": REPLICA, "worker": "RayTrainWorker", "haproxy": "haproxy.cfg",
    "controller": "ServeController",
}  # fmt: skip
# Kills of each target alone, at full length.
ALONE: Final = {
    "session-fold": 2, "counters": 2, "joiner": 2, "archive": 2, "sequencer": 2, "director": 2,
    "shadow": 2, "valkey": 3, "shard": 3, "replica": 3, "worker": 2, "haproxy": 3, "controller": 2,
    "trainer": 2, "serve": 2, "shards": 2, "ray": 2, SUPERVISOR: 2,
}  # fmt: skip
PAIRS: Final = (
    ("joiner", "sequencer"), ("shard", "worker"), ("replica", "haproxy"), ("valkey", "session-fold"),
    ("replica", "shard"), ("counters", "replica"), ("archive", "director"), ("trainer", "shards"),
    ("ray", SUPERVISOR), ("valkey", "joiner"),
)  # fmt: skip
_BEFORE_S: Final = 1.0  # of traffic before a kill
_SEEN_S: Final = 0.7  # time for the supervisor to notice
_PATIENCE_S: Final = 25.0  # for the system to be whole before the next kill
_WHOLE_S: Final = 180.0  # for a target to be there again, and for the system to be whole at the end


@dataclass(frozen=True)
class KillOptions:
    """Options of the bench. ``kills``: the first ones of the schedule; those not begun after ``minutes`` are
    left out."""

    kills: int = 60
    minutes: float = 22.0
    only: tuple[str, ...] = ()
    seed: int = 0


def schedule(options: KillOptions) -> list[tuple[str, ...]]:
    """Targets of each strike, in a drawn order: first all of a round, so that a short run has most targets.
    Raises ValueError for an unknown target."""
    unknown = sorted(set(options.only) - ALONE.keys())
    if unknown:
        raise ValueError(f"--only names {', '.join(unknown)}, expected of {', '.join(ALONE)}")
    draw, rounds = random.Random(options.seed), list[tuple[str, ...]]()
    for number in range(max(ALONE.values())):
        strikes: list[tuple[str, ...]] = [(name,) for name, most in ALONE.items() if number < most]
        strikes += PAIRS[number :: max(ALONE.values())]
        draw.shuffle(strikes)
        rounds += strikes
    wanted = [s for s in rounds if not options.only or set(s) <= set(options.only)]
    kills, chosen = 0, list[tuple[str, ...]]()
    for strike in wanted:
        if kills + len(strike) <= options.kills:
            chosen.append(strike)
            kills += len(strike)
    return chosen


def measure_kills(options: KillOptions, log_progress: Log = no_log) -> Figures:
    """Seconds of each recovery, and what is lost or doubled at the end."""
    strikes = schedule(options)
    rows = list[Figures]()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="recsys-bench-"))
        system = stack.enter_context(AuditedSystem(replace(audited_config(), state=f"{folder}/state")))
        log_progress("a whole system runs")
        last_s = time.monotonic() + 60 * options.minutes
        for strike in strikes:
            if time.monotonic() > last_s:
                break
            rows.append(row := _strike(system, strike))
            log_progress(f"{' + '.join(strike)}: {row}")
        whole_s = system.wait_healthy(system.expected(), _WHOLE_S)
        audit = system.audit()
    return {
        "what": "kill -9 of every part of a live system, alone and in pairs, while events arrive",
        "figures": {
            "kills": sum(map(len, strikes[: len(rows)])),
            "in_pairs": sum(len(strike) for strike in strikes[: len(rows)] if len(strike) > 1),
            "left_out": options.kills - sum(map(len, strikes[: len(rows)])),
            "whole_at_the_end": whole_s is not None,
            **audit,
            "whole_after_s": summary(strikes, rows),
        },
        "comparators": {},
    }


def summary(strikes: Sequence[tuple[str, ...]], rows: Sequence[Figures]) -> Figures:
    """Recovery times by target, those of pairs by both names; None: longer than ``_PATIENCE_S``."""
    times: dict[str, list[float | None]] = {}
    for strike, row in zip(strikes, rows, strict=False):
        times.setdefault("+".join(strike), []).append(row["whole_after_s"])
    return dict(sorted(times.items()))


def _strike(system: AuditedSystem, strike: tuple[str, ...]) -> Figures:
    """Kills all targets at once; seconds until the system is whole."""
    time.sleep(_BEFORE_S)
    expected = system.expected()
    killed = _processes(system, strike)
    began_s = time.monotonic()
    for process in killed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    while any(map(alive, killed)):
        time.sleep(0.01)
    if SUPERVISOR in strike:
        system.up()
    time.sleep(_SEEN_S)
    if system.wait_healthy(expected, _PATIENCE_S) is None:
        return {"whole_after_s": None, "why": _reason(system, expected)}
    return {"whole_after_s": round(time.monotonic() - began_s, 1)}


def _reason(system: Live, expected: HealthTarget) -> str:
    try:
        return system.unhealthy_reason(expected)
    except Exception as error:
        return repr(error)


def _processes(system: Live, strike: tuple[str, ...]) -> list[Identity]:
    """A process of each target, once all of them run. Raises RuntimeError."""
    until_s = time.monotonic() + _WHOLE_S
    while True:
        with contextlib.suppress(RuntimeError, OSError):
            processes = [_process(system, name) for name in strike]
            if all(map(alive, processes)):
                return processes
        if time.monotonic() > until_s:
            raise RuntimeError(f"after {_WHOLE_S:.0f} s not all of {strike} run, expected a restart")
        time.sleep(0.25)


def _process(system: Live, name: str) -> Identity:
    """A process of a target. Raises RuntimeError where there is none."""
    if name == SUPERVISOR:
        running = run_file.read(system.state)
        if running is None:
            raise RuntimeError(f"nothing runs in {system.state}, expected a system")
        return running.supervisor
    if name not in _WITHIN:
        return system.leader(name)
    for pid in system.processes_matching("ray", _WITHIN[name]):
        return identify(pid)
    raise RuntimeError(f"there is no process of {name}, expected one: {_WITHIN[name]}")
