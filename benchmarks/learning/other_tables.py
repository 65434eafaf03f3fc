"""Timing of ``recsys bench table``, and its comparators: tables of FBGEMM, torchrec and PyTorch, and a dict
of rows.

The first three take dense indices from 0 to rows - 1: none finds an id of 64 bits, admits, or returns the
touched rows. Forward is the lookup, backward (with the optimizer's step) the update.
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
    return _better(lambda indices: table(indices, offsets), _no_step, chosen, gradients, batches)


def time_torchrec(rows: int, chosen: list[Any], gradients: Any, batches: int) -> dict[str, float]:
    """A fused EmbeddingBagCollection with row-wise Adagrad: the table before in torchrec's own form."""
    from torchrec import EmbeddingBagConfig, KeyedJaggedTensor
    from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
    from torchrec.optim import RowWiseAdagrad

    table = FusedEmbeddingBagCollection(
        [EmbeddingBagConfig(rows, DIM, name="bench", feature_names=["id"])],
        RowWiseAdagrad,
        {"lr": RATE},
        device=torch.device("cpu"),
    )
    lengths = torch.ones(BATCH, dtype=torch.int64)

    def forward(indices: Tensor) -> Tensor:
        rows: Tensor = table(KeyedJaggedTensor(["id"], indices, lengths=lengths))["id"]
        return rows

    return _better(forward, _no_step, chosen, gradients, batches)


def embedding_bag(rows: int, chosen: list[Any], gradients: Any, batches: int) -> dict[str, float]:
    """``nn.EmbeddingBag`` with sparse gradients and ``torch.optim.Adagrad`` (one accumulator a number)."""
    table = torch.nn.EmbeddingBag(rows, DIM, mode="sum", sparse=True)
    optimizer = torch.optim.Adagrad(table.parameters(), lr=RATE)

    def step() -> None:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return _better(
        lambda indices: table(indices.unsqueeze(1)), step, chosen, gradients, max(1, batches // 4)
    )


def python_dict(keys: Any, chosen: list[Any], gradients: Any, batches: int) -> dict[str, float]:
    """A dict from id to an array, row-wise Adagrad by numpy, one row after the other."""
    every = keys.tolist()
    values = dict(zip(every, np.zeros((len(every), DIM), np.float32), strict=True))
    squares = dict.fromkeys(every, 0.0)
    picked = [keys[indices].tolist() for indices in chosen[: batches + 1]]

    def update(i: int) -> None:
        for key, gradient in zip(picked[i % len(picked)], gradients, strict=True):
            squares[key] += float(gradient @ gradient) / DIM
            values[key] -= RATE / (squares[key] ** 0.5 + 1e-8) * gradient

    def lookup(i: int) -> Any:
        return np.stack([values[key] for key in picked[i % len(picked)]])

    return {"lookups_per_s": rate(lookup, batches), "updates_per_s": rate(update, batches)}


def _no_step() -> None:
    """Optimizer step of a table that is updated within backward."""


def _better(
    forward: Forward, step: Callable[[], None], chosen: list[Any], gradients: Any, batches: int
) -> dict[str, float]:
    """Each figure is the better one of 1 and 2 threads."""
    runs = by_threads(lambda: _rates(forward, step, chosen, gradients, batches)).values()
    return {name: max(run[name] for run in runs) for name in ("lookups_per_s", "updates_per_s")}


def _rates(
    forward: Forward, step: Callable[[], None], chosen: list[Any], gradients: Any, batches: int
) -> dict[str, float]:
    indices, upstream = (
        [torch.from_numpy(numbers) for numbers in chosen],
        torch.from_numpy(gradients),
    )

    def lookup(i: int) -> None:
        with torch.no_grad():
            forward(indices[i % len(indices)])

    passed = []
    for i in range(batches + 1):
        output = forward(indices[i % len(indices)])
        started = time.perf_counter()
        output.backward(upstream)  # type: ignore[no-untyped-call]
        step()
        passed.append(time.perf_counter() - started)
    return {"lookups_per_s": rate(lookup, batches), "updates_per_s": per_second(passed[1:])}
