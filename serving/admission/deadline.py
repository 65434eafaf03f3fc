"""What an answer leaves out where its time runs short, and what a past answer left out. Pure.

A stage is asked for before it begins. What is left out stands in ``degraded``, and so in the impression: who
makes a past answer again asks ``RecordedDeadline``, which says the same without a clock.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol

POPULAR: Final = "retrieval:popular"  # candidates are the popular alone: a list that is ready
SHORT: Final = "rank:short"  # only the first of each source are ranked
UNRANKED: Final = "rank:none"  # nothing is ranked: popularity is the order


class Deadline(Protocol):
    """When an answer is due."""

    def skips(self, stage: str) -> bool:
        """Whether a stage is left out: too little time is left for it."""


class ClockDeadline:
    """``left_ms`` says how much time is left; ``needs_ms`` how much must be left for each stage."""

    def __init__(self, left_ms: Callable[[], float], needs_ms: Mapping[str, float]) -> None:
        self._left_ms, self._needs_ms = left_ms, needs_ms

    def skips(self, stage: str) -> bool:
        return self._left_ms() < self._needs_ms.get(stage, 0.0)


class RecordedDeadline:
    """Leaves out what an impression's ``degraded`` says was left out. Empty: nothing is."""

    def __init__(self, degraded: Iterable[str] = ()) -> None:
        self._missed = frozenset(degraded)

    def skips(self, stage: str) -> bool:
        return stage in self._missed


NO_DEADLINE: Final[Deadline] = RecordedDeadline()


def shorten_candidates(found: Mapping[int, list[str]], most: int) -> dict[int, list[str]]:
    """At most ``most`` candidates, of each source's first ones its share: sources find the best first."""
    if len(found) <= most:
        return dict(found)
    groups: dict[str, list[int]] = {}
    for index, sources in found.items():
        groups.setdefault(sources[0], []).append(index)
    kept = [
        index
        for members in groups.values()
        for index in members[: max(1, most * len(members) // len(found))]
    ]
    return {index: found[index] for index in kept[:most]}
