"""Loops of one process for ``recsys bench train``: our ranker over FBGEMM's fused tables, and over PyTorch's.

They read the same records from the same log, and learn the same network with the same losses and rates. They
keep no write-ahead file, no deltas and no 64-bit ids (a key is hashed to one of ``ids`` rows, so some share
one). The network consists of torch's own layers, as a user of these tables would write it; or of our layers,
and then only the placement and update of rows differ.
"""

import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.learning.other_tables import by_threads, fused_tables
from benchmarks.learning.synthetic_examples import FEATURES, FIELDS, DrawnExamples, one_hot
from recsys.config.system_config import Config
from recsys.events.records import EXAMPLES, TrainingExample, unpack_all
from recsys.model.model import build_model
from recsys.model.ranker import Ranker, loss_per_output, targets
from recsys.model.row_layers import interacted_by_torch
from recsys.process.latency_tuning import freeze_gc, gc_paused
from recsys.process.malloc_tuning import keep_freed_memory
from recsys.process.open_log import open_log

_WARM: Final = 8  # batches before the clock starts
Rows = Callable[[Tensor], Tensor]  # indices (F, B) -> rows (B, F, D + 1), which learn by backward
Network = Callable[[Ranker, Tensor], Tensor]  # rows (B, F, D + 1) -> logits (B, L)


def fused(config: Config, ids: int, batch: int, batches: int, our_layers: bool = False) -> dict[str, Any]:
    """FBGEMM's fused row-wise Adagrad, what torchrec trains with on a CPU; the better of 1 and 2 threads."""
    width = config.model.dim + 1
    wide = -(-width // 4) * 4  # FBGEMM wants a multiple of four

    def made() -> tuple[Rows, Callable[[], None]]:
        tables = fused_tables(FIELDS, ids, wide, config.model.row_rate)
        tables.init_embedding_weights_uniform(-config.model.row_initial, config.model.row_initial)

        def rows(indices_FB: Tensor) -> Tensor:
            flat = tables(indices_FB.reshape(-1), torch.arange(indices_FB.numel() + 1))
            out: Tensor = flat.view(-1, FIELDS, wide)[..., :width]
            return out

        return rows, lambda: None

    return _better(
        config, ids, batch, batches, made, logits_by_our_layers if our_layers else logits_by_torch_layers
    )


def embedding_bag(config: Config, ids: int, batch: int, batches: int) -> dict[str, Any]:
    """``nn.EmbeddingBag`` with sparse gradients and ``torch.optim.Adagrad`` (one accumulator a number)."""
    width, initial = config.model.dim + 1, config.model.row_initial

    def made() -> tuple[Rows, Callable[[], None]]:
        table = torch.nn.EmbeddingBag(ids * FIELDS, width, mode="mean", sparse=True)
        torch.nn.init.uniform_(table.weight, -initial, initial)
        optimizer = torch.optim.Adagrad(table.parameters(), lr=config.model.row_rate)
        first_F1 = torch.arange(FIELDS)[:, None] * ids

        def rows(indices_FB: Tensor) -> Tensor:
            flat = (indices_FB + first_F1).T.reshape(-1, 1)
            out: Tensor = table(flat).view(-1, FIELDS, width)
            return out

        def learn() -> None:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return rows, learn

    return _better(config, ids, batch, batches, made, logits_by_torch_layers)


def logits_by_our_layers(ranker: Ranker, rows_BFR: Tensor) -> Tensor:
    """The ranker's logits (B, L) of rows (B, F, D + 1), without history and numbers, by our layers."""
    shape = ranker.shape
    none = torch.zeros(1, 0, shape.dim + 1), torch.zeros(1, 0, shape.outcomes)
    logits: Tensor = ranker(rows_BFR, *none, torch.zeros(len(rows_BFR), 0))
    return logits


def logits_by_torch_layers(ranker: Ranker, rows_BFR: Tensor) -> Tensor:
    """The same by torch's own operations: ``bmm``, pairs by index as in torchrec's interaction, and
    ``nn.Linear``."""
    x, main_B = interacted_by_torch(rows_BFR)
    for layer in ranker.layers[:-1]:
        x = F.relu(layer(x))
    logits_BL: Tensor = ranker.layers[-1](x)
    return torch.cat([logits_BL[:, :1] + main_B[:, None], logits_BL[:, 1:]], 1)


def batches_of(config: Config, batch: int) -> Iterator[DrawnExamples]:
    """The examples on the log, ``batch`` at a time, decoded."""
    log = open_log(config)
    partitions = log.partitions(EXAMPLES)
    offset, share = [0] * partitions, batch // partitions
    try:
        while True:
            with gc_paused():  # read and decoded as our workers do
                examples: list[TrainingExample] = []
                for partition in range(partitions):
                    records = log.read(EXAMPLES, partition, offset[partition], share)
                    examples.extend(unpack_all([record.value for record in records], TrainingExample))
                    offset[partition] += len(records)
                drawn = one_hot(examples)
            if not examples:
                return
            yield drawn
    finally:
        log.close()


def _better(
    config: Config,
    ids: int,
    batch: int,
    batches: int,
    made: Callable[[], tuple[Rows, Callable[[], None]]],
    network: Network,
) -> dict[str, Any]:
    runs = by_threads(lambda: _rate(config, ids, batch, batches, *made(), network))
    figures = [rate | {"threads": threads} for threads, rate in runs.items()]
    return max(figures, key=lambda run: float(run["examples_per_s"]))


def _rate(
    config: Config,
    ids: int,
    batch: int,
    batches: int,
    rows: Rows,
    learn: Callable[[], None],
    network: Network,
) -> dict[str, Any]:
    """Examples per second, and what each takes of the processor, over all batches but the first few."""
    ranker = build_model(FEATURES, config.model).ranker
    assert isinstance(ranker, Ranker)
    optimizer = torch.optim.Adam(ranker.parameters(), lr=config.model.dense_rate, fused=True)
    weights = torch.tensor([1.0] + [config.model.side_weight] * len(FEATURES.schema.labels))
    freeze_gc()
    keep_freed_memory()
    done, started, busy = 0, time.perf_counter(), time.process_time()
    for number, drawn in enumerate(islice(batches_of(config, batch), batches)):
        if number == min(_WARM, batches // 2):
            done, started, busy = 0, time.perf_counter(), time.process_time()
        indices = torch.from_numpy((drawn.keys_NF.view(np.uint64) % ids).astype(np.int64).T.copy())
        wanted = targets(
            torch.from_numpy(drawn.labels_NK), torch.from_numpy(drawn.watch_ms_N.astype(np.float32))
        )
        logits = network(ranker, rows(indices))
        torch.sigmoid(logits.detach())  # it predicts before it learns, as ours does
        (loss_per_output(logits, wanted) * weights).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        learn()
        done += len(drawn.keys_NF)
    passed, busy = time.perf_counter() - started, time.process_time() - busy
    return {"examples_per_s": round(done / passed, 1), "cpu_us_per_example": round(1e6 * busy / done, 2)}
