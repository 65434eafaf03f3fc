"""Limits forgetting: scores a panel of old examples each window, and learns other old examples again.

Of each window of event time a few examples are selected, by the hashes of their places: a *cohort*. Half of a
cohort is the panel, which is scored and never learned again; of the other half, some are rehearsed in each
step (Robins 1995, "Catastrophic forgetting, rehearsal and pseudorehearsal"). Cohorts are places on the log,
without contents: a step's record names the examples that it rehearses, so learning it again gives the same
bits, and examples of deleted users are tombstones here too.

The panel controls the amount: a cohort's loss may rise above its best by ``band``; above that, rehearsal
grows; well below it, rehearsal shrinks, down to nothing.
"""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from msgspec.structs import replace

from recsys.config.system_config import StepConfig
from recsys.events.hashing import uniform
from recsys.events.records import Range, Step
from training.steps.sequencer import Sequencer, View

_LEAST_SHARE: Final = 0.02  # below it nothing is rehearsed


@dataclass(frozen=True)
class ForgettingConfig:
    window_ms: int = 6 * 3_600_000  # event time of a cohort
    examples: int = 512  # of a cohort, half of them panel
    cohorts: int = 28  # the newest; places older than the log's retention can't be learned from
    young: int = 1  # windows after which a cohort counts as old
    band: float = 0.02  # relative rise of a cohort's loss above its best that is tolerated
    most: float = 0.5  # rehearsed examples per fresh one
    start: float = 0.05  # the first share of rehearsal
    weight: float = 1.0  # of a rehearsed example

    def __post_init__(self) -> None:
        if self.window_ms < 1 or self.examples < 2 or self.cohorts < 1 or self.young < 0:
            raise ValueError(
                f"forgetting has window_ms {self.window_ms}, examples {self.examples}, cohorts "
                f"{self.cohorts}, young {self.young}; expected at least 1, 2, 1 and 0"
            )
        if not 0 < self.start <= self.most <= 4 or self.band <= 0 or self.weight <= 0:
            raise ValueError(
                f"forgetting has start {self.start}, most {self.most}, band {self.band}, weight "
                f"{self.weight}; expected 0 < start ≤ most ≤ 4 and positive numbers"
            )


class ExamplePlace(NamedTuple):
    """Place of an example on ``examples``."""

    partition: int
    offset: int


class Cohorts:
    """Selects the places of each window with the smallest hashes, whatever their order of arrival."""

    def __init__(self, config: ForgettingConfig, seed: int = 0) -> None:
        self._config, self._seed = config, seed
        self._heaps: dict[int, list[tuple[float, ExamplePlace]]] = {}

    @property
    def windows(self) -> list[int]:
        """The numbers of the windows with a cohort, oldest first."""
        return sorted(self._heaps)

    def take(self, partition: int, offset: int, at_ms: int) -> None:
        """Considers an example. Corrections and tombstones are allowed: readers skip them."""
        window = at_ms // self._config.window_ms
        heap = self._heaps.get(window)
        if heap is None:
            heap = self._heaps[window] = []
            while len(self._heaps) > self._config.cohorts:
                del self._heaps[min(self._heaps)]
            if window not in self._heaps:
                return
        place = ExamplePlace(partition, offset)
        entry = (-uniform(self._seed, "kept", partition, offset), place)
        if len(heap) < self._config.examples:
            heapq.heappush(heap, entry)
        else:
            heapq.heappushpop(heap, entry)

    def panel(self, window: int) -> list[ExamplePlace]:
        """The scored places of a cohort, in the order of the log."""
        return self._half(window, 0)

    def rehearsed(self, window: int) -> list[ExamplePlace]:
        """The places of a cohort that may be learned again, in the order of the log."""
        return self._half(window, 1)

    def oldest(self, partition: int) -> int | None:
        """The first offset that the log must retain; None without a place in the partition."""
        places = (place for heap in self._heaps.values() for _, place in heap)
        return min((p.offset for p in places if p.partition == partition), default=None)

    def _half(self, window: int, half: int) -> list[ExamplePlace]:
        places = sorted(place for _, place in self._heaps.get(window, ()))
        return [place for place in places if int(2 * uniform(self._seed, "half", *place)) == half]


class Rehearsal:
    """Draws the examples that a step learns again. ``share``: number per fresh example, 0 for none."""

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
        """The rehearsed places of a step of so many examples: each once, cohorts with equal chance."""
        count, windows = round(self.share * examples), self.old
        if not count or not windows:
            return []
        chosen: set[ExamplePlace] = set()
        for n in range(count):
            window = windows[int(uniform(self._seed, "cohort", step, n) * len(windows))]
            places = self.cohorts.rehearsed(window)
            if places:
                chosen.add(places[int(uniform(self._seed, "place", step, n) * len(places))])
        return [Range(p, offset, offset + 1) for p, offset in sorted(chosen)]


class RehearsingSequencer(Sequencer):
    """Sequencer whose steps also learn again what ``rehearsal`` draws."""

    def __init__(self, rehearsal: Rehearsal, config: StepConfig, **options: Any) -> None:
        super().__init__(config, **options)
        self._rehearsal = rehearsal

    def arrived(
        self, partition: int, offset: int, closed_ms: int, now_ms: int, view: View | None = None,
        learned: bool = True,
    ) -> None:  # fmt: skip
        super().arrived(partition, offset, closed_ms, now_ms, view, learned)
        self._rehearsal.arrived(partition, offset, closed_ms)

    def cut(self, now_ms: int, idle: bool = False) -> Step | None:
        step, rehearsal = super().cut(now_ms, idle), self._rehearsal
        if step is None:
            return None
        drawn = rehearsal.draw(step.step, step.examples)
        return replace(step, rehearsed=drawn, rehearsed_weight=rehearsal.config.weight)


@dataclass(frozen=True)
class Strength:
    """The share to rehearse from now on, and the reason: the cohort that lost most, and how much."""

    share: float
    worst: int | None
    excess: float  # its loss above its best, relative
    losses: Mapping[int, float]


class ForgettingControl:
    """Tunes rehearsal so that no cohort's loss rises above its best by more than the band."""

    def __init__(self, config: ForgettingConfig) -> None:
        self._config = config
        self._best: dict[int, float] = {}
        self.share = 0.0

    def window(self, losses: Mapping[int, float]) -> Strength:
        """Takes the panel's mean losses by cohort at the end of a window; they must not be NaN."""
        config, excess = self._config, dict[int, float]()
        for cohort, loss in losses.items():
            if not loss >= 0:
                raise ValueError(f"the loss of cohort {cohort} is {loss}, expected 0 or more")
            best = self._best[cohort] = min(loss, self._best.get(cohort, loss))
            excess[cohort] = loss / max(best, 1e-9) - 1.0
        worst = max(excess, key=lambda cohort: excess[cohort], default=None)
        most = 0.0 if worst is None else excess[worst]
        if most > config.band:
            self.share = min(config.most, max(config.start, 2.0 * self.share))
        elif most < config.band / 2:
            self.share /= 2.0
        if self.share < _LEAST_SHARE:
            self.share = 0.0
        self._best = {cohort: best for cohort, best in self._best.items() if cohort in losses}
        return Strength(self.share, worst, most, dict(losses))
