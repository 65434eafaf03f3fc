"""``recsys bench workers``: processor time of an event, and the state, with 1, 2, 4 and 8 workers of a fold.

One log in memory of eight partitions, with lists, views and likes of 5,000 users and a catalogue. The workers
of a fold run one after another, each over its partitions, so that they don't share caches or processors. The
sessions in the store, the examples on the log, and names and rows of the archive's files must be those of one
worker. Item counters must be the same for any number of workers above one, whose table is rounded in another
order. The process that adds them up has figures of its own.
"""

import hashlib
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np

from benchmarks.harness.memory_sessions import MemorySessions, MemoryShare
from benchmarks.learning.bench_join import CONFIG, FEATURES, draw_events
from recsys.events.event_types import Event, Item, Tick, encode
from recsys.events.records import (
    EVENTS,
    EXAMPLES,
    ITEM_COUNTS,
    ITEMS,
    ItemState,
    record_of,
    topics,
    unpack,
)
from recsys.log.protocol import Append, MemoryLog
from recsys.process.fold import Fold as LogFold
from recsys.process.latency_tuning import freeze_gc
from recsys.process.worker_share import Share
from serving.sessions.counter_loop import CounterLoop
from serving.sessions.counter_sums import SumLoop
from serving.sessions.session_loop import SessionLoop
from training.archive.files import files_of
from training.archive.writer import TOPICS, Archive, archived_rows
from training.joining.joiner_loop import JoinerLoop

PARTITIONS: Final = 8
WORKERS: Final = (1, 2, 4, 8)
_CATALOGUE: Final = 2_000
_ROUNDS: Final = 5  # interleaved; the least time counts

Fold = Callable[[list[Event], int], tuple[float, str]]


def measure_workers(events: int, seed: int) -> dict[str, Any]:
    """Microseconds of an event by fold and number of workers; raises RuntimeError where a state differs."""
    drawn = draw_events(events, seed)
    folds: dict[str, Fold] = {
        "session_fold": _sessions, "joiner": _examples, "counters": _counters,
        "archive": _archived,
    }  # fmt: skip
    figures = _sum_figures(drawn)
    for name, fold in folds.items():
        digests: set[str] = set()
        for _ in range(_ROUNDS):
            for workers in WORKERS:
                freeze_gc()
                seconds, digest = fold(drawn, workers)
                if digest:
                    digests.add(digest)
                key = f"{name}_us_{workers}"
                figures[key] = min(figures.get(key, 1e9), round(1e6 * seconds / len(drawn), 2))
        if len(digests) > 1:
            raise RuntimeError(f"{name}: the state depends on the number of workers: {digests}")
        most = max(figures[f"{name}_us_{workers}"] for workers in WORKERS)
        figures[f"{name}_most_over_one"] = round(most / figures[f"{name}_us_1"], 3)
    return {
        "what": f"{len(drawn)} events in {PARTITIONS} partitions, workers one after another",
        "figures": figures,
    }


def _log(events: list[Event]) -> MemoryLog:
    log = MemoryLog()
    for topic in topics(PARTITIONS):
        log.create(topic)
    fields = {"author": "a1", "tags": ["t1", "t2"]}
    items = [Item(time_ms=1, item_id=f"v{i}", fields=fields) for i in range(_CATALOGUE)]
    log.append(ITEMS, [Append(0, b"", encode(item)) for item in items])
    log.append(EVENTS, [record_of(event, PARTITIONS) for event in events])
    tick = encode(Tick(time_ms=events[-1].time_ms + 120_000))
    log.append(EVENTS, [Append(partition, b"", tick) for partition in range(PARTITIONS)])
    return log


def _sessions(events: list[Event], workers: int) -> tuple[float, str]:
    """Processor time without that of the catalogue, which each worker reads; digest of all sessions."""
    log, sessions, seconds = _log(events), MemorySessions(), 0.0
    for index in range(workers):
        share = Share(index, workers)
        store = MemoryShare(sessions, share, PARTITIONS)
        loop = SessionLoop(log, store, FEATURES, now_ms=lambda: 0, share=share)
        loop.events.read_items()
        seconds += _drained(loop)
    state = sorted(sessions.blobs.items())
    return seconds, hashlib.sha256(repr(state).encode()).hexdigest()


def _examples(events: list[Event], workers: int) -> tuple[float, str]:
    """Processor time, and digest of all examples."""
    log, seconds = _log(events), 0.0
    for index in range(workers):
        loop = JoinerLoop(log, CONFIG, FEATURES, lambda: 0, share=Share(index, workers))
        seconds += _drained(loop)
    state = hashlib.sha256()
    for partition in range(PARTITIONS):
        for record in log.read(EXAMPLES, partition, 0, 1 << 40):
            state.update(record.value)
    return seconds, state.hexdigest()


def _counters(events: list[Event], workers: int) -> tuple[float, str]:
    """Processor time of counting, and digest of the sums; of one worker none."""
    log, seconds = _log(events), 0.0
    for index in range(workers):
        seconds += _drained(_counter_loop(log, Share(index, workers)))
    if workers == 1:
        return seconds, ""
    total, _ = _added_up(log)
    keys, values, last_ms = total.sums.export()
    order = np.argsort(keys)
    state = b"".join(column[order].tobytes() for column in (keys, values, last_ms))
    return seconds, hashlib.sha256(state).hexdigest()


def _archived(events: list[Event], workers: int) -> tuple[float, str]:
    """Processor time of archiving events and examples, and digest of all files' names and rows."""
    log, seconds, state = _log(events), 0.0, hashlib.sha256()
    _drained(JoinerLoop(log, CONFIG, FEATURES, lambda: 0))
    with TemporaryDirectory() as name:
        folder = Path(name)
        for index in range(workers):
            seconds += _drained(Archive(log, folder, lambda: 0, Share(index, workers)))
        for topic in TOPICS:
            state.update(repr([file.path.name for file in files_of(folder, topic)]).encode())
            for row in archived_rows(folder, topic, ("partition", "offset", "key", "value")):
                state.update(repr(row).encode())
    return seconds, state.hexdigest()


def _sum_figures(events: list[Event]) -> dict[str, float]:
    """Time of adding up, of an event and of a row that changes; the number of rows, in one table and in those
    of partitions; and the largest difference of a sum from that of one table, relative to it."""
    log = _log(events)
    one = _counter_loop(log, Share())
    _drained(one)
    for index in range(PARTITIONS):
        _drained(_counter_loop(log, Share(index, PARTITIONS)))
    total, seconds = _added_up(log)
    states = [
        unpack(record.value, ItemState)
        for partition in range(PARTITIONS)
        for record in log.read(ITEM_COUNTS, partition, 0, 1 << 40)
    ]
    keys, values, _ = one.fold.counters.export()
    sums = total.sums.export(keys)[1]
    difference = np.abs(sums - values) / np.maximum(np.abs(values), 1e-6)
    return {
        "counter_sums_us": round(1e6 * seconds / len(events), 2),
        "counter_sums_us_a_row": round(1e6 * seconds / sum(len(s.keys) // 8 for s in states), 3),
        "counters_rows": len(keys),
        "counters_rows_of_tables": sum(map(len, total.tables)),
        "counters_largest_difference": float(difference.max()),
    }


def _counter_loop(log: MemoryLog, share: Share) -> CounterLoop:
    """A worker that publishes in each turn, and has read the catalogue."""
    loop = CounterLoop(log, FEATURES, now_ms=count(0, 100).__next__, share=share)
    loop.events.read_items()
    return loop


def _added_up(log: MemoryLog) -> tuple[SumLoop, float]:
    """The loop that adds up, at its end, and its processor time."""
    total = SumLoop(log, FEATURES, now_ms=count(0, 100).__next__)
    return total, _drained(total)


def _drained(loop: LogFold | SessionLoop | CounterLoop) -> float:
    """Processor seconds of all turns, and of publishing or writing what is left."""
    began_s = time.process_time()
    while loop.turn():
        pass
    if isinstance(loop, CounterLoop):
        loop.publish()
    if isinstance(loop, Archive):
        loop.flush()
    return time.process_time() - began_s
