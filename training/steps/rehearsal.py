"""Keeps a line from forgetting: a panel of old examples is scored each window, and others are learned again.

Of each window of event time a few examples are kept, by the hashes of their places: a *cohort*. Half of a
cohort is the panel, which is scored and never learned again; of the other half, some are rehearsed in each
step (Robins 1995, "Catastrophic forgetting, rehearsal and pseudorehearsal"). What is kept are places on the
log, no contents: a step's record names what it rehearses, so learning it again gives the same bits, and who
is forgotten is an empty place here too.

How much is rehearsed follows the panel: a cohort's loss may rise above its best by ``band``; beyond that more
is rehearsed, well below it less, down to nothing.
"""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from recsys.events.hashing import uniform
from recsys.events.records import Range

_LEAST_SHARE: Final = 0.02  # below it nothing is rehearsed


@dataclass(frozen=True)
class ForgettingConfig:
    window_ms: int = 6 * 3_600_000  # of event time, of a cohort
    kept: int = 512  # examples of a cohort, half of them panel
    cohorts: int = 28  # the newest; places older than the log's retention can't be learned from
    young: int = 1  # windows after which a cohort counts as old
    band: float = 0.02  # a cohort's loss may be so much above its best, relatively
    most: float = 0.5  # rehearsed examples beside one fresh one
    start: float = 0.05  # where rehearsing begins
    weight: float = 1.0  # of a rehearsed example

    def __post_init__(self) -> None:
        if self.window_ms < 1 or self.kept < 2 or self.cohorts < 1 or self.young < 0:
            raise ValueError(
                f"forgetting has window_ms {self.window_ms}, kept {self.kept}, cohorts {self.cohorts}, young "
                f"{self.young}; expected at least 1, 2, 1 and 0"
            )
        if not 0 < self.start <= self.most <= 4 or self.band <= 0 or self.weight <= 0:
            raise ValueError(
                f"forgetting has start {self.start}, most {self.most}, band {self.band}, weight "
                f"{self.weight}; expected 0 < start ≤ most ≤ 4 and positive numbers"
            )


class Place(NamedTuple):
    """Where an example stands on ``examples``."""

    partition: int
    offset: int


class Cohorts:
    """The places kept of each window: those with the smallest hashes, whatever the order they come in."""

    def __init__(self, config: ForgettingConfig, seed: int = 0) -> None:
        self._config, self._seed = config, seed
        self._heaps: dict[int, list[tuple[float, Place]]] = {}

    @property
    def windows(self) -> list[int]:
        """The numbers of the windows that have a cohort, oldest first."""
        return sorted(self._heaps)

    def take(self, partition: int, offset: int, at_ms: int) -> None:
        """An example came. Corrections and empty places may be taken too: whoever reads them passes over."""
        window = at_ms // self._config.window_ms
        heap = self._heaps.get(window)
        if heap is None:
            heap = self._heaps[window] = []
            while len(self._heaps) > self._config.cohorts:
                del self._heaps[min(self._heaps)]
            if window not in self._heaps:
                return
        entry = (-uniform(self._seed, "kept", partition, offset), Place(partition, offset))
        if len(heap) < self._config.kept:
            heapq.heappush(heap, entry)
        else:
            heapq.heappushpop(heap, entry)

    def panel(self, window: int) -> list[Place]:
        """What is scored of a cohort, in the order of the log."""
        return self._half(window, 0)

    def rehearsed(self, window: int) -> list[Place]:
        """What may be learned again of a cohort, in the order of the log."""
        return self._half(window, 1)

    def oldest(self, partition: int) -> int | None:
        """The first offset that has to be kept on the log; None where none has."""
        return min(
            (
                p.offset
                for heap in self._heaps.values()
                for _, p in heap
                if p.partition == partition
            ),
            default=None,
        )

    def _half(self, window: int, half: int) -> list[Place]:
        places = sorted(place for _, place in self._heaps.get(window, ()))
        return [place for place in places if int(2 * uniform(self._seed, "half", *place)) == half]


class Rehearsal:
    """Says what a step learns again. ``share``: examples beside one fresh one, 0 for none."""

    def __init__(self, config: ForgettingConfig, seed: int = 0) -> None:
        self.config, self._seed = config, seed
        self.cohorts = Cohorts(config, seed)
        self.share = 0.0
        self._now = 0  # window

    @property
    def old(self) -> list[int]:
        """The windows whose cohorts count as old."""
        return [window for window in self.cohorts.windows if window < self._now - self.config.young]

    def arrived(self, partition: int, offset: int, at_ms: int) -> None:
        self._now = max(self._now, at_ms // self.config.window_ms)
        self.cohorts.take(partition, offset, at_ms)

    def draw(self, step: int, examples: int) -> list[Range]:
        """What a step of so many examples rehearses: every old cohort is as likely; each place once."""
        count, windows = round(self.share * examples), self.old
        if not count or not windows:
            return []
        chosen: set[Place] = set()
        for n in range(count):
            window = windows[int(uniform(self._seed, "cohort", step, n) * len(windows))]
            places = self.cohorts.rehearsed(window)
            if places:
                chosen.add(places[int(uniform(self._seed, "place", step, n) * len(places))])
        return [Range(p, offset, offset + 1) for p, offset in sorted(chosen)]


@dataclass(frozen=True)
class Strength:
    """How much to rehearse from now on, and why: the cohort that has lost most, and by how much."""

    share: float
    worst: int | None
    excess: float  # its loss above its best, relatively
    losses: Mapping[int, float]


class ForgettingControl:
    """Tunes how much is rehearsed so that no cohort's loss rises above its best by more than the band."""

    def __init__(self, config: ForgettingConfig) -> None:
        self._config = config
        self._best: dict[int, float] = {}
        self.share = 0.0

    def window(self, losses: Mapping[int, float]) -> Strength:
        """Takes the panel's mean losses by cohort, at the end of a window; none of them may be NaN."""
        its = self._config
        excess = {}
        for cohort, loss in losses.items():
            if not loss >= 0:
                raise ValueError(f"the loss of cohort {cohort} is {loss}, expected 0 or more")
            best = self._best[cohort] = min(loss, self._best.get(cohort, loss))
            excess[cohort] = loss / max(best, 1e-9) - 1.0
        worst = max(excess, key=lambda cohort: excess[cohort], default=None)
        most = 0.0 if worst is None else excess[worst]
        if most > its.band:
            self.share = min(its.most, max(its.start, 2.0 * self.share))
        elif most < its.band / 2:
            self.share /= 2.0
        if self.share < _LEAST_SHARE:
            self.share = 0.0
        self._best = {cohort: best for cohort, best in self._best.items() if cohort in losses}
        return Strength(self.share, worst, most, dict(losses))
