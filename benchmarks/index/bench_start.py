"""``recsys bench start``: time until a ranker's first answer, and memory of several on one machine.

A process is a service with its session store in memory, without Ray. The first folds the whole catalogue and
writes the snapshot that the others start from. Their memory is the proportional set size: pages of n
processes count as 1 / n of each.
"""

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.answers.bench_serve_state import build, user_of
from benchmarks.harness import serve_doors as doors
from benchmarks.harness.commands import Figures, Log, no_log
from benchmarks.harness.memory_sessions import MemorySessions
from benchmarks.harness.worker_processes import (
    Messages,
    collect,
    end_processes,
    process_starter,
    reporting_errors,
)
from recsys.clock import machine_ms
from recsys.config.system_config import Config

_KINDS: Final = ("Pss", "Pss_Anon", "Pss_File")
_KB: Final = 1024 / 1e6


def measure_start(items: int, rankers: int, seed: int, log_progress: Log = no_log) -> Figures:
    """Seconds to the first answer by folding and from the snapshot, and MB of one and of all rankers."""
    doors.check_platform()
    with tempfile.TemporaryDirectory(prefix="recsys-bench-") as folder, doors.one_thread_each():
        config = doors.bench_config(folder, Config().serve.candidates)
        build(config, items, seed, time.time_ns() // 1_000_000)
        log_progress(f"{items} items are on the log")
        folded, _ = _run(config, 1, log_progress)
        starts, memory = _run(config, rankers, log_progress)
    ratio = round(sum(memory[-1]) / memory[0][0], 2)
    figures = {"folded": folded[0], "from_snapshot": starts, "pss_mb": memory, "pss_of_one": ratio}
    return {"what": f"{items} items, {rankers} rankers, one after the other", "figures": figures}


def _run(config: Config, rankers: int, log_progress: Log) -> tuple[list[Figures], list[list[float]]]:
    """Starts of rankers one after the other, and the memory of all after the first and the last one."""
    messages, stop, start = process_starter()
    parts, pids, starts, memory = [], list[int](), list[Figures](), []
    try:
        for number in range(rankers):
            parts.append(start(ranker, config, number, messages, stop))
            pid, figures = collect(messages, "answered", 1, parts)[number]
            pids.append(pid)
            starts.append(figures)
            log_progress(f"ranker {number + 1}: {figures}")
            if number in (0, rankers - 1):
                memory.append([memory_mb(pid)["Pss"] for pid in pids])
    finally:
        end_processes(parts, stop)
    return starts, memory


def memory_mb(pid: int | str) -> dict[str, float]:
    """Proportional set size of a process in MB, and its anonymous and file-backed parts."""
    sizes = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, value = line.partition(":")
        if name in _KINDS:
            sizes[name] = round(int(value.split()[0]) * _KB, 1)
    return sizes


def ranker(config: Config, number: int, messages: Messages, stop: Any) -> None:
    """Main function of a process: starts, answers once, reports, and stays."""
    import os

    import torch

    from recsys.events.records import ITEMS
    from recsys.process.open_log import open_log
    from serving.request import Request
    from serving.service import Service

    torch.set_num_threads(1)

    async def run() -> None:
        before, began, processor = memory_mb("self"), time.perf_counter(), time.process_time()
        log: Any = open_log(config)
        folded, read = list[int](), log.read

        def counted(topic: str, *args: int) -> Any:
            records = read(topic, *args)
            folded.extend([len(records)] if topic == ITEMS else [])
            return records

        log.read = counted
        service = Service(config, log, MemorySessions(), machine_ms)
        await service.start()
        while not service.ready and not service.failure:
            await asyncio.sleep(0.02)
        await service.recommend(Request(user_id=user_of(1), n=10), logged=False)
        figures = {
            "folded_items": sum(folded),
            "seconds": round(time.perf_counter() - began, 2),
            "processor_s": round(time.process_time() - processor, 2),
            "before_mb": before,
            "after_mb": memory_mb("self"),
        }
        messages.put(("answered", number, (os.getpid(), figures)))
        await asyncio.to_thread(stop.wait)
        await service.stop()

    with reporting_errors(messages, number):
        asyncio.run(run())
