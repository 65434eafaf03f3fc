"""Snapshots of ``recsys bench table``: cost of one by the rows that changed since the one before."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.learning.other_tables import DIM, RATE
from parameter_server.shard.lanes import LaneGradients, RowGradients
from parameter_server.shard.shard import Shard, ShardSpec
from parameter_server.storage import snapshots
from parameter_server.storage.durable_shard import DurableShard, ShardStorage, load_shard
from recsys.config.system_config import TableConfig

_SPEC: Final = ShardSpec((TableConfig("bench", DIM, RATE, initial=0.01),), lanes=1)
_CHANGED: Final = 0.01  # fraction of the rows between two snapshots
_BATCH: Final = 100_000


def snapshot_costs(keys: Any, seed: int, count: int = 40) -> dict[str, Any]:
    """Processor seconds of ``count`` snapshots in a row, full ones included, bytes that each wrote, and of
    reading the last one."""
    draw = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        storage = ShardStorage(Path(folder) / "snapshots", Path(folder) / "wal", 10**9)
        shard = DurableShard(_SPEC, storage, lambda deltas: None)
        for start in range(0, len(keys), _BATCH):
            rows = _gradients(draw, keys[start : start + _BATCH])
            shard.shard.tables["bench"].apply(*rows, now_ms=0)
        first_s = _cpu_s(lambda: _step(shard, draw, keys))
        costs, sizes = [], []
        for _ in range(count):
            _step(shard, draw, keys, snapshot=False)
            costs.append(_cpu_s(shard.snapshot))
            sizes.append(_newest_bytes(storage.snapshots))
        again = Shard(_SPEC)
        read_s = _cpu_s(lambda: load_shard(again, snapshots.require(storage.snapshots, "main")))
        assert again.digest() == shard.digest()
        shard.close()
    return {
        "what": f"{_CHANGED:.0%} of the rows changed between two snapshots, {count} in a row",
        "full_cpu_s": round(first_s, 3),
        "median_cpu_s": round(float(np.median(costs)), 3),
        "mean_cpu_s": round(float(np.mean(costs)), 3),
        "max_cpu_s": round(max(costs), 3),
        "mean_mb": round(float(np.mean(sizes)) / 2**20, 1),
        "read_cpu_s": round(read_s, 3),
    }


def _step(shard: DurableShard, draw: Any, keys: Any, snapshot: bool = True) -> None:
    """Learns a step of some rows, and takes a snapshot."""
    changed = draw.choice(keys, round(len(keys) * _CHANGED), replace=False)
    step = shard.applied + 1
    shard.learn(step, step, [LaneGradients(0, {"bench": _gradients(draw, changed)})])
    if snapshot:
        shard.snapshot()


def _gradients(draw: Any, keys: Any) -> RowGradients:
    gradients = draw.standard_normal((len(keys), DIM), np.float32)
    return RowGradients(keys, gradients, np.ones(len(keys), np.int32))


def _newest_bytes(folder: Path) -> int:
    """Size of the newest snapshot's own arrays."""
    return max(folder.glob("*/*/part-*/arrays.safetensors")).stat().st_size


def _cpu_s(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started
