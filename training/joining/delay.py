"""Estimates the share of each label that has arrived when its example is emitted (``Example.arrived``).

An example emitted when its view ends, or its window closes, shows a share F of the engagements that come
until the horizon, one number for each label and way of ending. F is the chain-ladder estimate of claims
reserving (Mack 1993, "Distribution-free calculation of the standard error of chain ladder reserve
estimates"), which is the product-limit estimate for right-truncated delays (Lagakos, Barraj, De Gruttola
1988). Impressions of one slice of time are a cohort. Its counts are the labels that were true in the first
example (column 0), and those that corrections brought by age: up to 1, 2, 4, … 32 slices (columns 1 to 6).
With N(≤ j) the labels of a cohort in the columns up to j,

    F = Π_j  Σ N(≤ j − 1) / Σ N(≤ j)      over the cohorts that are old enough for column j

so a young cohort, whose late labels can't have come yet, adds nothing about them. Older cohorts are
discounted, so that F follows a drift. A pure fold over the log, in event time.
"""

from typing import Final

import msgspec

SLICES: Final = 32  # of the time from an impression to its horizon
_AGES: Final = (1, 2, 4, 8, 16, 32)  # in slices: the last of each column after the first
_COLUMNS: Final = 1 + len(_AGES)
_HALF_LIFE: Final = 2 * SLICES
_DECAY: Final = 0.5 ** (1.0 / _HALF_LIFE)
_ENOUGH: Final = 30.0  # early labels, discounted, that an estimate needs
_LEAST: Final = 0.02  # below it, early labels carry too little information
_ALL: Final = 0.98  # above it, the missing labels matter less than learning from late ones


class DelayState(msgspec.Struct, array_like=True):
    """``cohorts``: counts by slice, flat (way, label, column); ``before``, ``through``: the sums of
    N(≤ j − 1) and N(≤ j), flat (way, label, column); ``width_ms``: of a slice."""

    slice: int
    cohorts: dict[int, list[int]]
    before: list[float]
    through: list[float]
    width_ms: int


class LabelDelays:
    """Label shares of one partition. Ways of ending: 0 by its view, 1 by its window."""

    def __init__(self, labels: int, window_s: float, horizon_s: float) -> None:
        self._labels = labels
        self._width_ms = max(1, round((window_s + horizon_s) * 1000 / SLICES))
        size = 2 * labels * _COLUMNS
        self.state = DelayState(0, {}, [0.0] * size, [0.0] * size, self._width_ms)
        self._update_shares()

    def restore(self, state: DelayState) -> None:
        """Continues from a state, or begins anew if the window or the horizon is another one now. Raises
        ValueError if its number of labels differs."""
        if len(state.before) != len(self.state.before):
            raise ValueError(
                f"delays of {len(state.before)} columns, expected {len(self.state.before)}: other labels"
            )
        if state.width_ms == self._width_ms:
            self.state = state
            self._update_shares()

    @property
    def next_ms(self) -> int:
        """When ``advance`` has work next."""
        return (self.state.slice + 1) * self._width_ms

    def advance(self, now_ms: int) -> None:
        """Advances time: cohorts become old enough for their next column, and the oldest leave."""
        state, now = self.state, now_ms // self._width_ms
        if now <= state.slice:
            return
        first = state.slice
        last = min(now, first + SLICES + 2) if state.cohorts else first  # all cohorts left by then
        for at in range(first + 1, last + 1):
            self._discount(_DECAY)
            for column, age in enumerate(_AGES, 1):
                self._count(state.cohorts.get(at - 1 - age), column)
            state.cohorts.pop(at - 1 - SLICES, None)
        if now > last:
            self._discount(_DECAY ** min(now - last, 100 * _HALF_LIFE))
        state.slice = now
        self._update_shares()

    def first(self, shown_ms: int, way: int, labels: int) -> None:
        """Counts the labels of an item's first example (bit *l* is label *l*)."""
        if labels:
            self._add(shown_ms, way, labels, 0)

    def later(self, shown_ms: int, way: int, labels: int, now_ms: int) -> None:
        """Counts labels that came after an item's first example."""
        slices = (now_ms - shown_ms) / self._width_ms
        for column, age in enumerate(_AGES, 1):
            if slices <= age:
                self._add(shown_ms, way, labels, column)
                return

    def arrived(self, way: int) -> list[float]:
        """F of each label; empty if 1 for all. F is also 1 if it is unknown, so near to 1 that corrections
        suffice, or so near to 0 that only corrections help."""
        return self._arrived[way]

    def late_labels(self, way: int) -> int:
        """The labels with F below 1, as bits."""
        return self._late_labels[way]

    def _add(self, shown_ms: int, way: int, labels: int, column: int) -> None:
        at = shown_ms // self._width_ms
        if at < self.state.slice - SLICES:
            return
        counts = self.state.cohorts.get(at)
        if counts is None:
            counts = self.state.cohorts[at] = [0] * (2 * self._labels * _COLUMNS)
        for label in range(self._labels):
            if labels >> label & 1:
                counts[(way * self._labels + label) * _COLUMNS + column] += 1

    def _discount(self, factor: float) -> None:
        self.state.before = [value * factor for value in self.state.before]
        self.state.through = [value * factor for value in self.state.through]

    def _count(self, counts: list[int] | None, column: int) -> None:
        """Adds a cohort that is old enough for a column to its sums."""
        if counts is None:
            return
        for start in range(0, len(counts), _COLUMNS):
            before = sum(counts[start : start + column])
            self.state.before[start + column] += before
            self.state.through[start + column] += before + counts[start + column]

    def _update_shares(self) -> None:
        ways = [[self._share(way, label) for label in range(self._labels)] for way in (0, 1)]
        self._arrived = [shares if min(shares, default=1.0) < 1.0 else [] for shares in ways]
        self._late_labels = [
            sum(1 << label for label, share in enumerate(shares) if share < 1.0) for shares in ways
        ]

    def _share(self, way: int, label: int) -> float:
        start = (way * self._labels + label) * _COLUMNS
        share = 1.0
        for column in range(start + 1, start + _COLUMNS):
            if self.state.through[column] > 0:
                share *= self.state.before[column] / self.state.through[column]
        # Labels of the cohorts that have reached the horizon, and the early ones of them: in column 1 a
        # cohort of a long window has none of them yet.
        through = self.state.through[start + _COLUMNS - 1]
        is_reliable = through > 0 and through * share >= _ENOUGH and _LEAST <= share <= _ALL
        return share if is_reliable else 1.0
