"""Processor time and wake-ups of processes, from ``/proc/PID/task``.

A wake-up is a voluntary context switch: a thread that waited, and goes on. Threads that end between two
readings aren't counted.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import psutil

_SWITCHES = "voluntary_ctxt_switches:"


class ThreadId(NamedTuple):
    """Process id and thread id."""

    pid: int
    tid: int


class ThreadTimes(NamedTuple):
    """Totals of a thread since it began."""

    cpu_ns: int
    wakeups: int


Reading = Mapping[ThreadId, ThreadTimes]


@dataclass
class Usage:
    """Use of several threads per second."""

    cores: float = 0.0
    wakeups_per_s: float = 0.0
    busiest_wakeups_per_s: float = 0.0  # of the thread that wakes most often
    processes: int = 0
    threads: int = 0

    def figures(self) -> dict[str, Any]:
        """Rounded values."""
        return {
            "cores": round(self.cores, 4),
            "wakeups_per_s": round(self.wakeups_per_s, 1),
            "busiest_thread_wakeups_per_s": round(self.busiest_wakeups_per_s, 1),
            "processes": self.processes,
            "threads": self.threads,
        }


def read_threads(pids: Iterable[int], proc: Path = Path("/proc")) -> dict[ThreadId, ThreadTimes]:
    """Reads all threads of the processes; skips those that end meanwhile."""
    reading = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            for task in (proc / str(pid) / "task").iterdir():
                with contextlib.suppress(OSError):
                    cpu_ns = int((task / "schedstat").read_text().split()[0])
                    reading[ThreadId(pid, int(task.name))] = ThreadTimes(
                        cpu_ns, voluntary_switches((task / "status").read_text())
                    )
    return reading


def voluntary_switches(status: str) -> int:
    """Number of voluntary context switches in the text of a ``status`` file."""
    for line in status.splitlines():
        if line.startswith(_SWITCHES):
            return int(line.removeprefix(_SWITCHES))
    raise ValueError(f"the status of a thread has no {_SWITCHES!r}, expected Linux with /proc")


def usage_by(
    name_of: Callable[[int], str], before: Reading, after: Reading, seconds: float
) -> dict[str, Usage]:
    """Use of each group of processes between two readings; ``name_of`` names the group of a process.

    A thread that began in between counts from its beginning.
    """
    none, groups, processes = ThreadTimes(0, 0), dict[str, Usage](), dict[str, set[int]]()
    for thread, times in after.items():
        past, name = before.get(thread, none), name_of(thread.pid)
        group = groups.setdefault(name, Usage())
        wakeups_per_s = (times.wakeups - past.wakeups) / seconds
        group.cores += (times.cpu_ns - past.cpu_ns) / 1e9 / seconds
        group.wakeups_per_s += wakeups_per_s
        group.busiest_wakeups_per_s = max(group.busiest_wakeups_per_s, wakeups_per_s)
        group.threads += 1
        processes.setdefault(name, set()).add(thread.pid)
        group.processes = len(processes[name])
    return groups


def total(groups: Iterable[Usage]) -> Usage:
    """Sum of groups."""
    result = Usage()
    for group in groups:
        result.cores += group.cores
        result.wakeups_per_s += group.wakeups_per_s
        result.busiest_wakeups_per_s = max(
            result.busiest_wakeups_per_s, group.busiest_wakeups_per_s
        )
        result.processes += group.processes
        result.threads += group.threads
    return result


def command_line(pid: int) -> str:
    """Command line of a process; empty once it has ended."""
    with contextlib.suppress(psutil.Error):
        return " ".join(psutil.Process(pid).cmdline())
    return ""
