"""``recsys bench rows``: memory of a replica's rows by number of users, and time to look them up.

Two ways over one synthetic snapshot of four parts and some increments, in a process each: rows in the mapped
files, as replicas have them, and all rows in memory. The files are in the page cache. Rows change at the same
rate for any number of users. Several mapped processes at once show what they share. Whole answers of one
replica alternate between the two ways, and must be equal.
"""

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.answers import bench_serve_state
from benchmarks.harness.commands import Figures, Log, no_log
from benchmarks.harness.serve_doors import bench_config
from benchmarks.harness.worker_processes import (
    collect,
    end_processes,
    process_starter,
    reporting_errors,
)
from parameter_server.publish.rounding import round_rows
from parameter_server.storage import part_files
from parameter_server.storage.part_files import Update
from parameter_server.storage.snapshot_rows import map_rows
from parameter_server.storage.snapshots import require, write_part
from parameter_server.table.routing import shard_of
from recsys.config.system_config import Config, tables_of
from recsys.events.hashing import splitmix64
from recsys.features.feature_set_file import feature_set
from recsys.features.session import Session
from recsys.process.open_log import open_log
from serving.pipeline import Pipeline
from serving.query import Query
from serving.replica.replica import Replica
from serving.replica.row_store import RowStore
from serving.replica.state_reader import StateReader
from serving.request import Request

Keys = NDArray[np.int64]
WAYS: Final = ("mapped", "memory")
_LINE, _PARTS, _INCREMENTS, _CHANGED = "main", 4, 3, 20_000
_ITEMS: Final = 20_000
_REQUEST: Final = 900  # distinct rows of a request with 300 candidates, about
_STEPS, _STEP_ROWS, _MINUTES = 60, 1_000, 4  # a snapshot a minute
_TABLES: Final = {t.name: t for t in tables_of(Config().model) if t.name != "items"}


def measure_rows(
    users: list[int], processes: int, answers: int, seed: int, log: Log = no_log
) -> Figures:
    """Figures by number of users, and of ``answers``. ``shared``: PSS of several processes beside that of
    one."""
    figures: Figures = {"answers": _answers(answers, seed)} if answers else {}
    for count in users:
        with tempfile.TemporaryDirectory(prefix="recsys-bench-") as folder:
            log(f"{count:,} users")
            _write(Path(folder), count, seed)
            own: Figures = {way: _run(folder, way, count, seed, 1)[0] for way in WAYS}
            together = _run(folder, "mapped", count, seed, processes)
            one, every = own["mapped"]["start"]["pss"], sum(p["start"]["pss"] for p in together)
            own["shared"] = {"processes": processes, "pss_mb": every, "of_one": every / one}
            figures[f"{count} users"] = own
    return {"figures": figures}


def keys_of(first: int, count: int) -> Keys:
    """Keys of users; items have negative numbers."""
    return splitmix64(np.arange(first, first + count).view(np.uint64)).view(np.int64)


def _write(folder: Path, users: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    every = np.concatenate([keys_of(0, users), keys_of(-_ITEMS, _ITEMS)])
    for step in range(1, _INCREMENTS + 2):
        keys = every if step == 1 else draw.choice(every, _CHANGED, replace=False)
        before = require(folder, _LINE).manifests if step > 1 else ()
        for part in range(_PARTS):
            chain = []
            if before:
                last = require(folder, _LINE, step=step - 1).files(part)[-1].parent
                chain = part_files.files_of(last, before[part])
            own = keys[shard_of(keys, _PARTS) == part]
            arrays: dict[str, NDArray[Any]] = {}
            for name, table in _TABLES.items():
                values = draw.standard_normal((len(own), table.dim), np.float32)
                arrays |= {f"table/{name}/keys": own, f"table/{name}/values": values}
                if chain:
                    arrays[f"table/{name}/removed"] = own[:0]
            meta = {"step": step, "delta_format": "fp16"}
            write_part(folder, _LINE, 0, step, part, _PARTS, Update(arrays, chain), meta)


def _run(folder: str, way: str, users: int, seed: int, processes: int) -> list[Figures]:
    messages, stop, start = process_starter()
    parts = [
        start(_process, folder, way, users, seed, number, messages, stop)
        for number in range(processes)
    ]
    try:
        if processes > 1:
            collect(messages, "started", processes, parts)
        stop.set()  # all look at their memory while all have their rows
        return list(collect(messages, "figures", processes, parts).values())
    finally:
        end_processes(parts, stop)


def _process(
    folder: str, way: str, users: int, seed: int, number: int, messages: Any, stop: Any
) -> None:
    with reporting_errors(messages, number):
        empty = _memory()
        began = time.perf_counter()
        stores = _stores(Path(folder), way)
        figures: Figures = {"start_s": time.perf_counter() - began, "empty": empty}
        for store in stores.values():
            store.lookup(keys_of(0, min(users, 50_000)))
        messages.put(("started", number, None))
        stop.wait()
        figures["start"] = _memory()
        figures |= _times(stores, users, np.random.default_rng(seed))
        draw, step = np.random.default_rng(seed), _INCREMENTS + 1
        for _ in range(_MINUTES):
            figures["step_us"] = _learn(stores, users, step, draw)
            step += _STEPS
            figures["changed"] = _memory()
            if way == "mapped":
                stores = _rebased(stores, Path(folder), step)
        messages.put(("figures", number, figures))


def _stores(folder: Path, way: str) -> dict[str, RowStore]:
    rows, seed = map_rows(folder, _LINE), Config().model.seed
    if way == "mapped":
        return {n: RowStore.over(t, seed, rows.tables[n]) for n, t in _TABLES.items()}
    stores = {}
    for name, table in _TABLES.items():
        keys, values = zip(*rows.tables[name].blocks(), strict=True)
        stores[name] = RowStore.filled(table, seed, np.concatenate(keys), np.concatenate(values))
    return stores


def _rebased(stores: Mapping[str, RowStore], folder: Path, step: int) -> dict[str, RowStore]:
    """As after a snapshot of all that changed: files don't matter here, only what leaves memory."""
    bases = map_rows(folder, _LINE).tables
    for base in bases.values():
        base.step = step
    return {name: store.rebased(bases[name]) for name, store in stores.items()}


def _learn(
    stores: Mapping[str, RowStore], users: int, after: int, draw: np.random.Generator
) -> float:
    """Changes rows of users; returns the median time of a step."""
    times = []
    for step in range(after + 1, after + 1 + _STEPS):
        keys = np.unique(keys_of(0, users)[draw.integers(0, users, _STEP_ROWS)])
        began = time.perf_counter()
        for name, store in stores.items():
            values = np.full((len(keys), _TABLES[name].dim), 0.5, np.float32)
            store.set(keys, round_rows(values, "fp16").rows, step)
        times.append(time.perf_counter() - began)
    return float(np.median(times)) * 1e6


def _times(stores: Mapping[str, RowStore], users: int, draw: np.random.Generator) -> Figures:
    """µs of a user's two rows, each time of another user or of the same one, and of a request's rows."""
    others = [keys_of(int(n), 1) for n in draw.integers(0, users, 2_000)]
    items = keys_of(-_ITEMS, _ITEMS)
    requests = [
        np.concatenate([draw.choice(items, _REQUEST - 1, replace=False), user])
        for user in others[:500]
    ]

    def user(key: Keys) -> None:
        stores["features"].lookup(key)
        stores["users"].lookup(key)

    return {
        "other_user_us": _us(user, others),
        "same_user_us": _us(user, others[:1] * len(others)),
        "request_us": _us(stores["features"].lookup, requests),
    }


def _us(look: Callable[[Keys], Any], every: list[Keys]) -> Figures:
    times = []
    for keys in every:
        began = time.perf_counter()
        look(keys)
        times.append(time.perf_counter() - began)
    return {f"p{p}": float(np.percentile(times, p)) * 1e6 for p in (50, 99)}


def _answers(count: int, seed: int) -> Figures:
    """ms of an answer, by the way in which the replica has its rows."""
    with tempfile.TemporaryDirectory(prefix="recsys-bench-") as folder:
        config = bench_config(folder, Config().serve.candidates)
        features, now_ms = feature_set(config), int(time.time() * 1000)
        blobs = list(bench_serve_state.build(config, _ITEMS, seed, now_ms).sessions.values())
        log = open_log(config)
        try:
            replica = Replica(features, config)
            reader = StateReader(log, replica, config, lambda: now_ms)
            reader.catch_up(lambda: False)
        finally:
            log.close()
    pipeline, tables = Pipeline(replica), tables_of(config.model)
    rows = dict[str, Mapping[str, RowStore]]()
    rows["mapped"] = replica.rows
    rows["memory"] = {
        t.name: RowStore.filled(t, config.model.seed, *replica.rows[t.name].export())
        for t in tables
    }
    took = {way: list[float]() for way in WAYS}
    for number in range(count):
        session = Session.unpack(blobs[number % len(blobs)], features)
        request = Request(session.user_id, 10)
        policy = reader.policies.resolve(session.user_id)
        answers = []
        for way in WAYS if number % 2 else WAYS[::-1]:
            replica.rows = dict(rows[way])
            began = time.perf_counter()
            answers.append(pipeline.recommend(Query(request, session, policy, now_ms, "r")))
            took[way].append(time.perf_counter() - began)
        assert answers[0].impression == answers[1].impression, "the two ways answer differently"
    return {
        way: {f"p{p}_ms": float(np.percentile(times, p)) * 1e3 for p in (50, 99)}
        for way, times in took.items()
    }


def _memory() -> Figures:
    """MB of this process: its share of all its pages, its anonymous pages, and those that only it has."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    kb = {name: int(value.split()[0]) for name, value in (line.split(":") for line in lines)}
    private = kb["Private_Clean"] + kb["Private_Dirty"]
    sizes_kb = {"pss": kb["Pss"], "pss_anon": kb["Pss_Anon"], "uss": private}
    return {name: size / 1024 for name, size in sizes_kb.items()}
