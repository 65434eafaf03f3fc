"""``recsys bench retrieval``: memory that retrieval shards take off a replica, and the cost of a search
there.

Each variant is built in a process of its own from the same items, with a row of ``items`` and one of
``features`` each; its memory is the growth of that process: a replica with vectors and index, one without,
and one of ``--shards`` shards. ``recsys bench serve --retrieval-shards`` measures the network hop of a
request.
"""

import gc
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any, Final

import numpy as np

from benchmarks.index.synthetic_catalogue import Plan, plan
from parameter_server.publish.deltas import Changed, StepDelta
from recsys.config.system_config import Config
from recsys.events.hashing import key_of
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import FEED_SCHEMA
from serving.index.faiss_centroids import lists_for, sample_of, train
from serving.query import VectorVersion
from serving.replica.index_maintenance import IndexMaintenance, SwapIndex
from serving.replica.replica import Replica
from serving.retrieval.retrieval_shard import RetrievalShard, ShardRequest

WITH, WITHOUT, SHARD = "replica_with_index", "replica_without", "shard"
_BLOCK: Final = 10_000
_ROUNDS: Final = 40
_ASKED: Final = (150, 27, 27, 27)  # of the user vector and of three liked items, as in policies
_SEEN: Final = 500  # excluded items
_BEHIND: Final = 4  # steps that a shard is ahead of the request: a second
_MOVED: Final = 250  # vectors of a step


def measure_retrieval(items: int, shards: int, seed: int) -> dict[str, Any]:
    """Bytes an item in each variant, and the time of a request's searches in a shard."""
    measured = {
        name: _measure_in_process(name, items, shards, seed) for name in (WITH, WITHOUT, SHARD)
    }
    times = {key: measured[SHARD].pop(key) for key in ("search_ms", "search_behind_ms", "index")}
    sizes = {name: figures["bytes_per_item"] for name, figures in measured.items()}
    return {
        "what": f"{items} items, vectors of 32 floats, {shards} shards; a shard's bytes are by its own items",
        "figures": {
            "bytes_per_item": sizes,
            "leaves_the_replica": sizes[WITH] - sizes[WITHOUT],
            **times,
        },
        "comparators": {},
    }


def _measure_in_process(name: str, items: int, shards: int, seed: int) -> dict[str, Any]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        figures: dict[str, Any] = pool.submit(measure_memory, name, items, shards, seed).result()
    return figures


def measure_memory(name: str, items: int, shards: int, seed: int) -> dict[str, Any]:
    """Memory of one variant, and for a shard the time of searches."""
    import psutil

    catalogue, process = plan(items, 32, seed), psutil.Process()
    made = _empty(name, shards)
    _fill(_empty(name, shards), catalogue, 2_000)  # warm-up: compilation
    gc.collect()
    before = process.memory_info().rss
    _fill(made, catalogue, items)
    gc.collect()
    grown = process.memory_info().rss - before
    num_items = len(made.catalogue)
    return {"bytes_per_item": round(grown / num_items)} | (_times(made) if name == SHARD else {})


def _empty(name: str, shards: int) -> Any:
    base, features = Config(), FeatureSet(FEED_SCHEMA)
    config = replace(base, serve=replace(base.serve, retrieval_shards=shards))
    if name == SHARD:
        return RetrievalShard(features, config, 0, shards)
    return Replica(features, config, 0 if name == WITH else shards)


def _fill(made: Any, catalogue: Plan, items: int) -> None:
    """Adds items, rows, and the index for that many."""
    for start in range(0, items, _BLOCK):
        numbers = np.arange(start, min(items, start + _BLOCK))
        made.apply_records([(catalogue.item(n), n + 1) for n in numbers.tolist()])
        keys = np.array([key_of("item", f"v{n}") for n in numbers.tolist()], np.int64)
        rows = {"items": catalogue.rows(numbers), "features": np.ones((len(keys), 17), np.float32)}
        _step(made, {table: (keys, some) for table, some in rows.items() if table in made.rows})
    maintenance = IndexMaintenance(made, train, sample_of, lists_for)
    index = maintenance.build_now()
    if index is not None:
        maintenance.apply(SwapIndex(index))


def _step(made: Any, tables: dict[str, tuple[Any, Any]]) -> None:
    none = np.empty(0, np.int64)
    changed = {table: Changed(keys, rows, none) for table, (keys, rows) in tables.items()}
    made.apply_step(StepDelta(made.step + 1, 0, changed, None, {}))


def _times(shard: Any) -> dict[str, Any]:
    """Searches at the shard's current version, and at one some steps before."""
    draw, keys = np.random.default_rng(0), shard.catalogue.keys[:, 0]
    version = VectorVersion(shard.line, shard.epoch, shard.step, shard.catalogue_offset)
    figures, asked = {"index": shard.index.name or "flat"}, (shard.shard, shard.shards)
    for figure in ("search_ms", "search_behind_ms"):
        taken = []
        for _ in range(_ROUNDS):
            some = draw.choice(len(keys), len(_ASKED))
            without = keys[draw.choice(len(keys), min(_SEEN, len(keys) // 4), replace=False)]
            queries = shard.vectors_of(some)
            ask = ShardRequest(
                version, queries.tobytes(), list(_ASKED), 1, without.tobytes(), 0.0, *asked
            )
            began = time.perf_counter()
            answer = shard.search(ask)
            taken.append(time.perf_counter() - began)
            assert not answer.refused, answer.refused
        figures[figure] = round(1e3 * float(np.median(taken)), 2)
        for _ in range(_BEHIND):
            moved = draw.choice(len(keys), min(_MOVED, len(keys)), replace=False)
            rows = shard.rows["items"].lookup(keys[moved].copy())
            _step(shard, {"items": (keys[moved].copy(), rows + np.float32(0.01))})
    return figures
