"""Chooses the stages that an answer skips when time is short, and repeats that choice for past answers. Pure.

The pipeline asks before each stage. Skipped stages are listed in ``degraded``, and so in the impression: a
reconstruction of the answer uses ``RecordedDeadline``, which skips the same ones without a clock.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

POPULAR: Final = "retrieval:popular"  # the only candidates are the popular items: a ready list
SHORT: Final = "rank:short"  # only the first candidates of each source are ranked
UNRANKED: Final = "rank:none"  # nothing is ranked: the order is by popularity


class Deadline(Protocol):
    """Decides whether a stage still fits."""

    def skips(self, stage: str) -> bool:
        """Whether to skip a stage because too little time is left."""


class TimeLeftDeadline:
    """Compares ``left_ms()``, the remaining time, with ``needs_ms``, the time each stage requires."""

    def __init__(self, left_ms: Callable[[], float], needs_ms: Mapping[str, float]) -> None:
        self._left_ms, self._needs_ms = left_ms, needs_ms

    def skips(self, stage: str) -> bool:
        return self._left_ms() < self._needs_ms.get(stage, 0.0)


class RecordedDeadline:
    """Skips the stages that an impression's ``degraded`` lists. Empty: skips none."""

    def __init__(self, degraded: Iterable[str] = ()) -> None:
        self._skipped = frozenset(degraded)

    def skips(self, stage: str) -> bool:
        return stage in self._skipped


NO_DEADLINE: Final[Deadline] = RecordedDeadline()


def first_of_each(sources_N: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Positions of at most ``most`` candidates, given a bit for each source: of each source a proportional
    share, its first and best."""
    count = len(sources_N)
    if count <= most:
        return np.arange(count)
    first_N = sources_N & -sources_N  # a candidate belongs to the first source that retrieved it
    sources, begins = np.unique(first_N, return_index=True)
    groups = (np.flatnonzero(first_N == source) for source in sources[np.argsort(begins)])
    chosen = [members[: max(1, most * len(members) // count)] for members in groups]
    return np.concatenate(chosen)[:most]
