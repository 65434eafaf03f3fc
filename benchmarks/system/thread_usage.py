"""Processor time of processes and wake-ups of their threads, from ``/proc/PID``.

A wake-up is a voluntary context switch: a thread that waited, and goes on. Processor time includes threads
that ended between two readings; their wake-ups aren't counted, nor processes that ended.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import psutil

_SWITCHES: Final = "voluntary_ctxt_switches:"
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
# Fields of ``stat`` after the name: state, and processor time in user mode and in the kernel.
_STATE, _USER, _KERNEL = 0, 11, 12
_ENDED: Final = (FileNotFoundError, ProcessLookupError)


class ProcessTimes(NamedTuple):
    """Totals of a process since it began: processor time of all its threads, also of those that ended, and
    wake-ups by id of each thread that runs."""

    cpu_s: float
    wakeups: Mapping[int, int]


Reading = Mapping[int, ProcessTimes]  # by process id


@dataclass
class Usage:
    """Use of several processes per second."""

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


def read_processes(pids: Iterable[int], proc: Path = Path("/proc")) -> dict[int, ProcessTimes]:
    """Reads the processes; skips those that have ended. Raises RuntimeError where all have ended, or no
    thread of one that runs could be read."""
    reading = {}
    for pid in pids:
        times = _read_process(proc / str(pid))
        if times is not None:
            reading[pid] = times
    if not reading:
        raise RuntimeError(f"{proc} has none of the processes, expected those of a running system")
    return reading


def _read_process(folder: Path) -> ProcessTimes | None:
    """Totals of one process; None where it has ended."""
    wakeups = {}
    with contextlib.suppress(*_ENDED):
        for task in (folder / "task").iterdir():
            with contextlib.suppress(*_ENDED):
                wakeups[int(task.name)] = voluntary_switches((task / "status").read_text())
    try:
        stat = (folder / "stat").read_text()
    except _ENDED:
        return None
    fields = stat.rpartition(")")[2].split()  # the name before it may have any characters
    if not wakeups and fields[_STATE] not in ("Z", "X"):
        raise RuntimeError(
            f"no thread of a running process could be read in {folder}/task, expected Linux with /proc"
        )
    return ProcessTimes((int(fields[_USER]) + int(fields[_KERNEL])) / _TICKS_PER_S, wakeups)


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

    A process or a thread that began in between counts from its beginning.
    """
    none, groups = ProcessTimes(0.0, {}), dict[str, Usage]()
    for pid, times in after.items():
        past, group = before.get(pid, none), groups.setdefault(name_of(pid), Usage())
        group.cores += (times.cpu_s - past.cpu_s) / seconds
        group.processes += 1
        for thread, wakeups in times.wakeups.items():
            wakeups_per_s = (wakeups - past.wakeups.get(thread, 0)) / seconds
            group.wakeups_per_s += wakeups_per_s
            group.busiest_wakeups_per_s = max(group.busiest_wakeups_per_s, wakeups_per_s)
            group.threads += 1
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
