"""Timing of ``recsys bench table``, and its comparator: FBGEMM's fused table.

It takes dense indices from 0 to rows - 1: it finds no id of 64 bits, admits none, and doesn't return the
touched rows. Forward is the lookup, backward the update.
"""

import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

_THREADS: Final = (1, 2)
BATCH: Final = 10_000
DIM: Final = 32
RATE: Final = 0.05
NEW: Final = BATCH // 200  # new ids of a batch, which the next batch repeats
Forward = Callable[[Tensor], Tensor]  # indices (N,) -> rows (N, D), which learn by backward


def rate(work: Callable[[int], object], batches: int) -> float:
    """Ids per second by the median batch: the first is a warm-up, and an interrupted one counts no more than
    others."""
    work(0)
    return per_second([_timed(work, i) for i in range(1, batches + 1)])


def per_second(seconds: list[float]) -> float:
    return round(BATCH / float(np.median(seconds)), 1)


def _timed(work: Callable[[int], object], i: int) -> float:
    started = time.perf_counter()
    work(i)
    return time.perf_counter() - started


def fused_tables(count: int, rows: int, dim: int, rate: float) -> Any:
    """FBGEMM's embedding tables with fused row-wise Adagrad, which torchrec trains with on a CPU."""
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    return SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, dim, EmbeddingLocation.HOST, ComputeDevice.CPU)] * count,
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=rate,
    )


def by_threads(measure: Callable[[], Any]) -> dict[int, Any]:
    """Results of a measurement with 1 and with 2 threads of torch."""
    before, results = torch.get_num_threads(), {}
    try:
        for threads in _THREADS:
            torch.set_num_threads(threads)
            results[threads] = measure()
    finally:
        torch.set_num_threads(before)
    return results


def fbgemm(rows: int, chosen: list[Any], gradients: Any, batches: int) -> dict[str, float]:
    """Bags of one id, fused row-wise Adagrad; the better of 1 and 2 threads."""
    table, offsets = fused_tables(1, rows, DIM, RATE), torch.arange(BATCH + 1)
    runs = by_threads(
        lambda: _rates(lambda indices: table(indices, offsets), chosen, gradients, batches)
    ).values()
    return {name: max(run[name] for run in runs) for name in ("lookups_per_s", "updates_per_s")}


def _rates(forward: Forward, chosen: list[Any], gradients: Any, batches: int) -> dict[str, float]:
    indices = [torch.from_numpy(numbers) for numbers in chosen]
    upstream = torch.from_numpy(gradients)

    def lookup(i: int) -> None:
        with torch.no_grad():
            forward(indices[i % len(indices)])

    passed = []
    for i in range(batches + 1):
        output = forward(indices[i % len(indices)])
        started = time.perf_counter()
        output.backward(upstream)  # type: ignore[no-untyped-call]
        passed.append(time.perf_counter() - started)
    return {"lookups_per_s": rate(lookup, batches), "updates_per_s": per_second(passed[1:])}
