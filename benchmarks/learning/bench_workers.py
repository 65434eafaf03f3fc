"""``recsys bench workers``: processor time of an event, and the state, with 1, 2, 4 and 8 workers of a fold.

Item counters have one process. The figures ``counters_…`` say what dividing them would take: a table of each
partition, added up in the order of partitions, so that the sums don't depend on the number of workers.

One log in memory of eight partitions, with lists, views and likes of 5,000 users and a catalogue. The workers
of a fold run one after another, each over its partitions, so that they don't share caches or processors. The
sessions in the store, and the examples on the log, must be those of one worker.
"""

import hashlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import numpy as np

from benchmarks.harness.memory_sessions import MemorySessions, MemoryShare
from benchmarks.learning.bench_join import CONFIG, FEATURES, draw_events
from recsys.events.event_types import Engagement, Event, Impression, Item, Tick, encode
from recsys.events.records import EVENTS, EXAMPLES, ITEMS, record_of, topics
from recsys.features.counters import CounterTable, Keys, Values
from recsys.features.item_counters import ItemCounters
from recsys.log.protocol import Append, MemoryLog
from recsys.process.latency_tuning import freeze_gc
from recsys.process.worker_share import Share
from serving.sessions.event_reader import EventReader
from serving.sessions.session_loop import SessionLoop
from training.joining.joiner_loop import JoinerLoop

PARTITIONS: Final = 8
WORKERS: Final = (1, 2, 4, 8)
_CATALOGUE: Final = 2_000
_ROUNDS: Final = 5  # interleaved; the least time counts

Fold = Callable[[list[Event], int], tuple[float, str]]


def measure_workers(events: int, seed: int) -> dict[str, Any]:
    """Microseconds of an event by fold and number of workers; raises RuntimeError where a state differs."""
    drawn = draw_events(events, seed)
    folds: dict[str, Fold] = {"session_fold": _sessions, "joiner": _examples}
    figures = _counter_figures(drawn)
    for name, fold in folds.items():
        digests: set[str] = set()
        for _ in range(_ROUNDS):
            for workers in WORKERS:
                freeze_gc()
                seconds, digest = fold(drawn, workers)
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
        seconds += _drained(loop.turn)
    state = sorted(sessions.blobs.items())
    return seconds, hashlib.sha256(repr(state).encode()).hexdigest()


def _examples(events: list[Event], workers: int) -> tuple[float, str]:
    """Processor time, and digest of all examples."""
    log, seconds = _log(events), 0.0
    for index in range(workers):
        loop = JoinerLoop(log, CONFIG, FEATURES, lambda: 0, share=Share(index, workers))
        seconds += _drained(loop.turn)
    state = hashlib.sha256()
    for partition in range(PARTITIONS):
        for record in log.read(EXAMPLES, partition, 0, 1 << 40):
            state.update(record.value)
    return seconds, state.hexdigest()


def _counter_figures(events: list[Event]) -> dict[str, float]:
    """Time of an event with one table, and with a table of each partition; of adding up a row; the number of
    rows; and the largest difference of a sum from that of one table, relative to it."""
    log, seconds, tables = _log(events), dict[str, float](), list[CounterTable]()
    for name, shares in (
        ("one_table", [Share()]),
        ("tables", [Share(partition, PARTITIONS) for partition in range(PARTITIONS)]),
    ):
        tables, seconds[name] = [], 0.0
        for share in shares:
            reader = EventReader(log, FEATURES, share)
            reader.seek(None)
            reader.read_items()
            fold = ItemCounters(FEATURES, partitions=PARTITIONS)
            seconds[name] += _drained(partial(_count, reader, fold))
            tables.append(fold.counters)
        if name == "one_table":
            keys, values, last_ms = tables[0].export()
    began_s = time.process_time()
    sums = _added_up(tables, keys, last_ms)
    added_s = time.process_time() - began_s
    difference = np.abs(sums - values) / np.maximum(np.abs(values), 1e-6)
    return {
        "counters_us_one_table": round(1e6 * seconds["one_table"] / len(events), 2),
        "counters_us_tables": round(1e6 * seconds["tables"] / len(events), 2),
        "counters_added_us_a_row": round(1e6 * added_s / len(keys), 3),
        "counters_rows": len(keys),
        "counters_rows_of_tables": sum(map(len, tables)),
        "counters_largest_difference": float(difference.max()),
    }


def _count(reader: EventReader, fold: ItemCounters) -> int:
    batch = reader.read()
    for partition, _, event in batch:
        if isinstance(event, Impression):
            fold.impression(event, reader.shown_keys(event))
        elif isinstance(event, Engagement):
            fold.engagement(event, reader.keys_of(event.item_id), partition)
    return len(batch)


def _added_up(tables: list[CounterTable], keys: Keys, last_ms: Keys) -> Values:
    """Sums of rows over tables, in their order, as of the newest event of each row."""
    sums = np.zeros((len(keys), tables[0].columns), np.float32)
    kinds = tables[0].kinds
    for table in tables:
        own, values, own_ms = table.export()
        if not len(own):
            continue
        order = np.argsort(own)
        places = order[np.searchsorted(own[order], keys).clip(max=len(own) - 1)]
        present = own[places] == keys
        age = np.maximum(last_ms - own_ms[places], 0)[:, None]
        left = np.exp2(-age / table.half_lives_ms).astype(np.float32)
        sums += np.where(present[:, None], values[places] * np.repeat(left, kinds, 1), 0)
    return sums


def _drained(turn: Callable[[], int]) -> float:
    began_s = time.process_time()
    while turn():
        pass
    return time.process_time() - began_s
