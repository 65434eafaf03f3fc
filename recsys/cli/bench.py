"""``recsys bench NAME``: a figure beside what one would pick instead, doing the same work in the same run."""

import json
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer

_DIM: Final = 32
_BATCH: Final = 10_000


def bench(
    name: Annotated[str, typer.Argument(help="table: rows of the parameter server.")] = "table",
    rows: Annotated[int, typer.Option(help="Rows in the table.")] = 200_000,
    batches: Annotated[int, typer.Option(help="Batches that are timed.")] = 50,
    seed: Annotated[int, typer.Option(help="Of the keys.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here.")
    ] = None,
) -> None:
    """Measures speed beside what one would pick instead."""
    if name != "table":
        raise typer.BadParameter(f"there is no bench {name!r}, expected table")
    if rows < _BATCH or batches < 1:
        raise typer.BadParameter(
            f"rows is {rows}, batches {batches}: expected {_BATCH} rows or more"
        )
    found = {
        "bench": name,
        "command": f"recsys bench {name} --rows {rows} --batches {batches} --seed {seed}",
        "seed": seed,
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {package: version(package) for package in ("torch", "fbgemm-gpu-cpu", "numpy")},
        **measure_table(rows, batches, seed),
    }
    typer.echo(json.dumps(found, indent=1))
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=1) + "\n")


def measure_table(rows: int, batches: int, seed: int) -> dict[str, Any]:
    """Our table, with ids of 64 bits, admission and touched rows; beside it FBGEMM's with dense indices."""
    draw = np.random.default_rng(seed)
    keys = draw.integers(-(2**63), 2**63 - 1, rows, dtype=np.int64)
    chosen = [draw.choice(rows, _BATCH, replace=False) for _ in range(8)]
    gradients = draw.normal(size=(_BATCH, _DIM)).astype(np.float32)
    ours = _ours(keys, chosen, gradients, batches)
    return {"figures": ours, "comparators": {"fbgemm": _fbgemm(rows, chosen, gradients, batches)}}


def _ours(keys: Any, chosen: list[Any], gradients: Any, batches: int) -> dict[str, float]:
    from parameter_server.kernels import warm
    from parameter_server.rows import Table
    from recsys.config import TableConfig

    warm()
    table, counts = Table(TableConfig("bench", _DIM, 0.05, 0.01), 0), np.ones(_BATCH, np.int32)
    for start in range(0, len(keys), _BATCH):
        part = keys[start : start + _BATCH]
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
    offsets = torch.arange(_BATCH + 1)
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
        "updates_per_s": round(_BATCH * batches / passed, 1),
    }


def _rate(work: Callable[[int], object], batches: int) -> float:
    """Ids per second over all batches but the first, which warms up."""
    work(0)
    started = time.perf_counter()
    for i in range(batches):
        work(i)
    return round(_BATCH * batches / (time.perf_counter() - started), 1)
