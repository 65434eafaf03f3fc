"""``recsys bench int8``: lookups and bytes of a replica's rows as int8, beside float32 and FBGEMM's own int8.

The keys are 64-bit ids, the rows as published in the format int8. FBGEMM's tables take dense indices, which
they get from our map; that lookup isn't counted. Their scale and bias don't reproduce a published row;
``largest_error`` is the difference.
"""

import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from parameter_server.publish.rounding import round_rows
from plugins.row_formats.int8_rows import Int8Rows
from recsys.config.system_config import TableConfig
from serving.replica.row_store import RowStore

_REQUEST: Final = 900  # distinct rows of a request with 300 candidates, about
_DIMS: Final = (17, 32)  # of the feed's tables
Ids = NDArray[np.int64]
Take = Callable[[Ids, Ids], Any]  # of keys at these slots


def measure_int8(rows: int, batches: int, seed: int) -> dict[str, Any]:
    """Figures of each row width."""
    import fbgemm_gpu  # noqa: F401  its operations are torch's from now on

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {"figures": {f"dim {dim}": _measure(rows, dim, batches, seed) for dim in _DIMS}}
    finally:
        torch.set_num_threads(before)


def _measure(rows: int, dim: int, batches: int, seed: int) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    keys = np.unique(draw.integers(-(2**62), 2**62, rows))
    values = round_rows(draw.normal(0, 0.1, (len(keys), dim)).astype(np.float32), "int8").rows
    table = TableConfig("features", dim, 0.1, initial=0.01)
    whole, int8_rows = (kind.filled(table, 0, keys, values) for kind in (RowStore, Int8Rows))
    asked = [
        draw.choice(len(keys), min(_REQUEST, len(keys)), replace=False) for _ in range(batches)
    ]
    assert int8_rows.digest == whole.digest, "the two stores hold other rows"
    fused = torch.ops.fbgemm.FloatToFused8BitRowwiseQuantized(torch.from_numpy(values))
    again = torch.ops.fbgemm.Fused8BitRowwiseQuantizedToFloat(fused[:1000]).numpy()
    ways: dict[str, Take] = {
        "float32": lambda keys_, slots: whole.lookup(keys_),
        "int8": lambda keys_, slots: int8_rows.lookup(keys_),
        "fbgemm_fused": lambda keys_, slots: torch.ops.fbgemm.Fused8BitRowwiseQuantizedToFloat(
            fused[torch.from_numpy(slots)]
        ),
        "fbgemm_int_nbit": _int_nbit(len(keys), dim),
    }
    return {
        "rows": len(keys),
        "bytes_a_row": {
            "float32": round(whole.nbytes / len(keys), 1),
            "int8": round(int8_rows.nbytes / len(keys), 1),
            "fbgemm_fused": fused.shape[1],
        },
        "largest_error": {"int8": 0.0, "fbgemm_fused": float(np.abs(again - values[:1000]).max())},
        "lookup_us": {name: _median_us(take, asked, keys) for name, take in ways.items()},
    }


def _int_nbit(rows: int, dim: int) -> Take:
    from fbgemm_gpu.split_embedding_configs import SparseType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
    from fbgemm_gpu.split_table_batched_embeddings_ops_inference import (
        IntNBitTableBatchedEmbeddingBagsCodegen,
    )

    table = IntNBitTableBatchedEmbeddingBagsCodegen(
        [("rows", rows, -(-dim // 4) * 4, SparseType.INT8, EmbeddingLocation.HOST)],
        pooling_mode=PoolingMode.NONE,
        device="cpu",
        output_dtype=SparseType.FP32,
    )
    table.fill_random_weights()

    def take(keys: Ids, slots: Ids) -> Any:
        offsets = torch.arange(len(slots) + 1, dtype=torch.int32)
        return table(torch.from_numpy(slots.astype(np.int32)), offsets)

    return take


def _median_us(take: Take, asked: list[Ids], keys: Ids) -> float:
    """Measures each way separately, over newly drawn batches, so that most rows are in no cache."""
    for slots in asked[:3]:
        take(keys[slots], slots)
    taken = []
    for slots in asked:
        batch_keys = keys[slots]
        began = time.perf_counter()
        take(batch_keys, slots)
        taken.append(time.perf_counter() - began)
    return round(float(np.median(taken)) * 1e6, 1)
