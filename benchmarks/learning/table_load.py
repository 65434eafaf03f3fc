"""What tables are asked in `recsys bench table`, and how their rate is taken."""

import time
from collections.abc import Callable
from typing import Final

import numpy as np

BATCH: Final = 10_000
DIM: Final = 32
RATE: Final = 0.05
NEW: Final = BATCH // 200  # ids that a batch is the first to have, and the next one has too


def rate(work: Callable[[int], object], batches: int) -> float:
    """Ids per second, by the median batch: the first warms up, and one that others interrupt counts for no
    more than any other."""
    work(0)
    return per_second([_timed(work, i) for i in range(1, batches + 1)])


def per_second(seconds: list[float]) -> float:
    return round(BATCH / float(np.median(seconds)), 1)


def _timed(work: Callable[[int], object], i: int) -> float:
    started = time.perf_counter()
    work(i)
    return time.perf_counter() - started
