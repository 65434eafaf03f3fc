"""``recsys bench table``: one shard's rows in one process, beside FBGEMM's.

Ids have 64 bits and no row collides; admission is on (a row after the second sight), and the touched rows of
a batch are kept, as publishing needs them. A batch has distinct ids, drawn uniformly; of the ids of an
update, one in a hundred has no row yet: half of these come for the first time, half for the second.
"""

from typing import Any, Final

import numpy as np

from benchmarks.learning.other_tables import BATCH, DIM, NEW, RATE, fbgemm, rate
from parameter_server.shard.lanes import RowGradients, StepSum
from parameter_server.shard.shard import Shard, ShardSpec
from parameter_server.table.kernels import warm
from recsys.config.system_config import TableConfig

_CONFIG: Final = TableConfig("bench", DIM, RATE, initial=0.01, admit_after=2)
_BATCHES: Final = 32  # distinct batches, which together touch far more rows than caches hold


def measure_table(rows: int, batches: int, seed: int) -> dict[str, Any]:
    """Ids per second of all tables, over the same rows, batches and gradients."""
    draw = np.random.default_rng(seed)
    keys = np.unique(draw.integers(-(2**63), 2**63 - 1, rows, dtype=np.int64))
    draw.shuffle(keys)
    chosen = [draw.choice(len(keys), BATCH, replace=False) for _ in range(_BATCHES)]
    gradients = draw.normal(size=(BATCH, DIM)).astype(np.float32)
    new = draw.integers(-(2**63), 2**63 - 1, NEW * 2 * (batches + 2), dtype=np.int64)
    return {
        "what": f"{len(keys)} rows of {DIM} floats, batches of {BATCH} distinct ids drawn uniformly",
        "figures": ours(keys, chosen, gradients, new, batches),
        "comparators": {"fbgemm": fbgemm(len(keys), chosen, gradients, batches)},
    }


def ours(keys: Any, chosen: list[Any], gradients: Any, new: Any, batches: int) -> dict[str, float]:
    """``lookups``: copies the rows of ids. ``updates``: learns, counts the ``new`` ids, admits those seen
    twice, and returns the changed rows. ``published``: a whole step of a shard, which also keeps an undo of
    one step and makes the delta with the changed rows' values and its checksum."""
    warm()
    shard = Shard(ShardSpec((_CONFIG,), lanes=1))
    table, counts = shard.tables[_CONFIG.name], np.ones(BATCH, np.int32)
    for start in range(0, len(keys), BATCH):
        part = keys[start : start + BATCH]
        size = len(part)
        table.apply(part, gradients[:size], 2 * counts[:size], 0)  # seen twice: admitted
    picked = [keys[indices] for indices in chosen]
    learned = [with_new(picked, batch, i) for batch in np.split(new, 2) for i in range(batches + 1)]
    sums = [{_CONFIG.name: RowGradients(batch, gradients, counts)} for batch in learned[batches + 1 :]]
    touched = rows = 0

    def update(i: int) -> None:
        nonlocal touched, rows
        done = table.apply(learned[i], gradients, counts, i)
        touched, rows = touched + len(done.keys), rows + done.inserted

    def publish(i: int) -> None:
        step = shard.applied + 1
        shard.apply(StepSum(step, step, sums[i], None, {}))

    figures = {
        "lookups_per_s": rate(lambda i: table.lookup(picked[i % _BATCHES]), batches),
        "updates_per_s": rate(update, batches),
        "published_per_s": rate(publish, batches),
        "bytes_per_row": round(table.nbytes / len(table), 1),
        "times_its_floats": round(table.nbytes / len(table) / (4 * DIM), 3),
    }
    # An id that collides in the sketch gets its row at the first sight, and learns again at the second.
    early = touched - (BATCH - 2 * NEW) * (batches + 1) - rows
    assert 0 <= early <= rows / 5 and rows >= 0.8 * NEW * batches, f"{touched=}, {rows=}"
    return figures


def with_new(picked: list[Any], new: Any, i: int) -> Any:
    """Batch ``i`` (N,): distinct ids, of which ``NEW`` came for the first time in the batch before, and
    ``NEW`` come now. In the first, untimed batch all of them are new."""
    batch = picked[i % len(picked)].copy()
    batch[-2 * NEW :] = new[NEW * i : NEW * (i + 2)]
    return batch
