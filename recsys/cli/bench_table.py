"""``recsys bench table``: rows of the parameter server in one process, beside FBGEMM's fused table."""

import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np

BATCH: Final = 10_000
_DIM: Final = 32


def measure_table(rows: int, batches: int, seed: int) -> dict[str, Any]:
    """Our table, with ids of 64 bits, admission and touched rows; beside it FBGEMM's with dense indices."""
    draw = np.random.default_rng(seed)
    keys = draw.integers(-(2**63), 2**63 - 1, rows, dtype=np.int64)
    chosen = [draw.choice(rows, BATCH, replace=False) for _ in range(8)]
    gradients = draw.normal(size=(BATCH, _DIM)).astype(np.float32)
    ours = _ours(keys, chosen, gradients, batches)
    return {"figures": ours, "comparators": {"fbgemm": _fbgemm(rows, chosen, gradients, batches)}}


def _ours(keys: Any, chosen: list[Any], gradients: Any, batches: int) -> dict[str, float]:
    from parameter_server.kernels import warm
    from parameter_server.rows import Table
    from recsys.config import TableConfig

    warm()
    table, counts = Table(TableConfig("bench", _DIM, 0.05, 0.01), 0), np.ones(BATCH, np.int32)
    for start in range(0, len(keys), BATCH):
        part = keys[start : start + BATCH]
        table.apply(part, gradients[: len(part)], counts[: len(part)], 0)
    picked = [keys[indices] for indices in chosen]
    return {
        "lookups_per_s": _rate(lambda i: table.lookup(picked[i % 8]), batches),
        "updates_per_s": _rate(lambda i: table.apply(picked[i % 8], gradients, counts, i), batches),
        "bytes_per_row": round(table.nbytes / len(table), 1),
    }


def _fbgemm(rows: int, chosen: list[Any], gradients: Any, batches: int) -> dict[str, float]:
    """Length-1 bags, fused row-wise Adagrad: forward is the lookup, backward the update."""
    import torch
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    torch.set_num_threads(1)
    table = SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, _DIM, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=0.05,
    )
    offsets = torch.arange(BATCH + 1)
    indices, upstream = [torch.from_numpy(c) for c in chosen], torch.from_numpy(gradients)

    def forward(i: int) -> None:
        with torch.no_grad():
            table(indices[i % 8], offsets)

    passed = 0.0
    for i in range(batches + 1):
        output = table(indices[i % 8], offsets)
        started = time.perf_counter()
        output.backward(upstream)
        passed += time.perf_counter() - started if i else 0.0
    return {
        "lookups_per_s": _rate(forward, batches),
        "updates_per_s": round(BATCH * batches / passed, 1),
    }


def _rate(work: Callable[[int], object], batches: int) -> float:
    """Ids per second over all batches but the first, which warms up."""
    work(0)
    started = time.perf_counter()
    for i in range(batches):
        work(i)
    return round(BATCH * batches / (time.perf_counter() - started), 1)
