"""Chooses the stages that an answer skips when time is short, and repeats that choice for past answers. Pure.

The pipeline asks before each stage. Skipped stages are listed in ``degraded``, and so in the impression: a
reconstruction of the answer uses ``RecordedDeadline``, which skips the same ones without a clock.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol

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


def shorten_candidates(candidates: Mapping[int, list[str]], most: int) -> dict[int, list[str]]:
    """Keeps at most ``most`` candidates: of each source a proportional share, its first and best."""
    if len(candidates) <= most:
        return dict(candidates)
    groups: dict[str, list[int]] = {}
    for index, sources in candidates.items():
        groups.setdefault(sources[0], []).append(index)
    chosen = list[int]()
    for members in groups.values():
        chosen += members[: max(1, most * len(members) // len(candidates))]
    return {index: candidates[index] for index in chosen[:most]}
