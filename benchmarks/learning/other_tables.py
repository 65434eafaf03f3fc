"""Other tables for ``recsys bench table``: FBGEMM's, torchrec's, PyTorch's, and a dict of rows.

The first three take dense indices from 0 to rows - 1: none finds an id of 64 bits, admits, or says which rows
it touched. Forward is the lookup, backward (with the optimizer's step) the update.
"""

import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from benchmarks.learning.table_load import BATCH, DIM, RATE, per_second, rate

_THREADS: Final = (1, 2)
Forward = Callable[[Tensor], Tensor]  # indices (N,) -> rows (N, D), which learn by backward


def fbgemm(rows: int, chosen: list[Any], gradients: Any, batches: int) -> dict[str, float]:
    """Bags of one id, fused row-wise Adagrad; the better of 1 and 2 threads."""
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    table = SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, DIM, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=RATE,
    )
    offsets = torch.arange(BATCH + 1)
    return _better(lambda indices: table(indices, offsets), _no_step, chosen, gradients, batches)


def torchrec(rows: int, chosen: list[Any], gradients: Any, batches: int) -> dict[str, float]:
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
        found: Tensor = table(KeyedJaggedTensor(["id"], indices, lengths=lengths))["id"]
        return found

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
    """What is fused with backward needs no step of an optimizer."""


def _better(
    forward: Forward, step: Callable[[], None], chosen: list[Any], gradients: Any, batches: int
) -> dict[str, float]:
    """Each figure is the better one of 1 and 2 threads."""
    before, found = torch.get_num_threads(), list[dict[str, float]]()
    try:
        for threads in _THREADS:
            torch.set_num_threads(threads)
            found.append(_rates(forward, step, chosen, gradients, batches))
    finally:
        torch.set_num_threads(before)
    return {name: max(its[name] for its in found) for name in found[0]}


def _rates(
    forward: Forward, step: Callable[[], None], chosen: list[Any], gradients: Any, batches: int
) -> dict[str, float]:
    indices, upstream = [torch.from_numpy(its) for its in chosen], torch.from_numpy(gradients)

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
