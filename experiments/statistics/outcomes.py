"""Outcomes of an experiment's users by arm, before and since exposure, in growing arrays.

A user counts from the first list answered under an arm (the exposure), shown or not. Items shown before are
covariates; items shown since count for the arm, by days since exposure. A user takes 8 · sums · (days + 1)
bytes and about 150 more. Beyond ``most_users``, half of them are dropped, and half of later ones, by a hash
of the user that is independent of arms, so the rest is an unbiased sample. The number of users of each arm is
counted separately, over all of them.
"""

# U users, N rows of a call, S sums, D days since exposure

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from experiments.assignment.design import SHOWN, USER, Metric
from experiments.statistics.effect import ArmUsers

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
DAY_MS: Final = 86_400_000
DAYS: Final = 8  # seven days, and all later ones
NOBODY: Final = -1  # in place of an arm: not exposed, or not under this experiment
MAX_COUNTED: Final = 2_000_000
_FIRST: Final = 1024  # initial capacity in users
_BUFFER: Final = 16_384  # new users that are merged into the sorted arrays at once


def in_sample(users: Any, share: float) -> Any:
    """Whether users, by their 64-bit keys, are in a sample of this share."""
    return (users & 0xFFFF_FFFF) < share * 2**32


class ExposureCounts:
    """Number of users by arm, each counted once, by the first arm. Beyond ``most`` users half of them are
    dropped, and half of later ones, by their hash. ``sampled``: share of users that is counted."""

    def __init__(self, arms: int, most: int = MAX_COUNTED) -> None:
        self._most = most
        self.sampled = 1.0
        self._keys_U = np.zeros(0, np.int64)  # ascending
        self._arms_U = np.zeros(0, np.int8)
        self._buffer: dict[int, int] = {}
        self._counts = [0] * arms

    def counts(self) -> list[int]:
        return list(self._counts)

    def add(self, users_N: Ints, arms_N: Ints) -> None:
        """Users with their arms, in order; most of them repeated."""
        if self.sampled < 1:
            sampled_N = in_sample(users_N, self.sampled)
            users_N, arms_N = users_N[sampled_N], arms_N[sampled_N]
        at = np.searchsorted(self._keys_U, users_N)
        known_N = np.zeros(len(users_N), np.bool_)
        inside = at < len(self._keys_U)
        known_N[inside] = self._keys_U[at[inside]] == users_N[inside]
        for user, arm in zip(users_N[~known_N].tolist(), arms_N[~known_N].tolist(), strict=True):
            if user not in self._buffer:
                self._buffer[user] = arm
                self._counts[arm] += 1
        if len(self._buffer) >= _BUFFER or len(self._buffer) + len(self._keys_U) > self._most:
            self._merge()

    def _merge(self) -> None:
        keys = np.concatenate([self._keys_U, np.fromiter(self._buffer, np.int64)])
        arms = np.concatenate([self._arms_U, np.fromiter(self._buffer.values(), np.int8)])
        order = np.argsort(keys, kind="stable")
        self._keys_U, self._arms_U, self._buffer = keys[order], arms[order], {}
        while len(self._keys_U) > self._most:
            self.sampled /= 2
            sampled_U = in_sample(self._keys_U, self.sampled)
            self._keys_U, self._arms_U = self._keys_U[sampled_U], self._arms_U[sampled_U]
            self._counts = np.bincount(self._arms_U, minlength=len(self._counts)).tolist()


class UserOutcomes:
    """Outcomes of one experiment. ``arms``: names, the control first. ``sums``: names (``design.sums_of``).
    ``since_ms``: count days from there for all users, instead of from each one's exposure. ``day_ms``: length
    of a "day"."""

    def __init__(
        self, arms: Sequence[str], sums: Sequence[str], days: int = DAYS, most_users: int = 200_000,
        since_ms: int | None = None, day_ms: int = DAY_MS,
    ) -> None:  # fmt: skip
        self.arms, self.sums, self.days = tuple(arms), tuple(sums), days
        self._most, self._since_ms, self._day_ms = most_users, since_ms, day_ms
        self.exposed = ExposureCounts(len(arms))
        self.sampled = 1.0  # share of users with outcomes
        self.crossed = 0  # users seen in more than one arm: an error
        self.outside = 0  # items shown to exposed users after the arm's traffic ended
        self._rows: dict[int, int] = {}
        self._arrays: dict[str, NDArray[Any]] = {
            "key": np.zeros(_FIRST, np.int64), "arm": np.full(_FIRST, NOBODY, np.int8),
            "exposed_ms": np.zeros(_FIRST, np.int64), "segment": np.zeros(_FIRST, np.int16),
            "crossed": np.zeros(_FIRST, np.bool_), "before": np.zeros((_FIRST, len(sums))),
            "after": np.zeros((_FIRST, days, len(sums))),
        }  # fmt: skip

    def __len__(self) -> int:
        """Number of users in the sample, exposed or not."""
        return len(self._rows)

    def expose(self, users_N: Ints, arms_N: Ints, time_ms_N: Ints, segments_N: Ints) -> None:
        """Adds lists answered under an arm, in order. ``users_N``: 64-bit keys of users."""
        self.exposed.add(users_N, arms_N)
        columns = (users_N, arms_N, time_ms_N, segments_N)
        for user, arm, time_ms, segment in zip(*(c.tolist() for c in columns), strict=True):
            row, arrays = self._row(user), self._arrays
            if row is None:
                continue
            if arrays["arm"][row] == NOBODY:
                arrays["arm"][row], arrays["exposed_ms"][row] = arm, time_ms
                arrays["segment"][row] = segment
            elif arrays["arm"][row] != arm and not arrays["crossed"][row]:
                arrays["crossed"][row] = True
                self.crossed += 1

    def add(self, users_N: Ints, arms_N: Ints, shown_ms_N: Ints, values_NS: Floats) -> None:
        """Adds shown items, or corrections of them: user, arm (or NOBODY), time of serving, and the amounts
        of each sum."""
        for user in users_N.tolist():
            self._row(user)
        found_N = [self._rows.get(user, NOBODY) for user in users_N.tolist()]  # final rows
        rows_N = np.array(found_N, np.int64)
        sampled_N = rows_N != NOBODY
        rows, arms = rows_N[sampled_N], arms_N[sampled_N]
        shown_ms, values = shown_ms_N[sampled_N], values_NS[sampled_N]
        arrays = self._arrays
        own_arms, exposed_ms = arrays["arm"][rows], arrays["exposed_ms"][rows]
        under = (arms != NOBODY) & (arms == own_arms)
        before = (arms == NOBODY) & ((own_arms == NOBODY) | (shown_ms < exposed_ms))
        self.outside += int((~under & ~before).sum())
        np.add.at(arrays["before"], rows[before], values[before])
        start_ms = exposed_ms if self._since_ms is None else np.full(len(rows), self._since_ms)
        days = np.clip((shown_ms - start_ms) // self._day_ms, 0, self.days - 1)
        np.add.at(arrays["after"], (rows[under], days[under]), values[under])

    def counts(self) -> list[int]:
        """Number of exposed users by arm, over all users."""
        return self.exposed.counts()

    def shown(self, arm: int) -> float:
        """Number of items shown under an arm, in the sample."""
        return float(self._column("after")[self._in_arm(arm), :, self.sums.index(SHOWN)].sum())

    def segments(self) -> list[int]:
        exposed = self._column("arm") != NOBODY
        segments: list[int] = np.unique(self._column("segment")[exposed]).tolist()
        return segments

    def users(
        self, metric: Metric, arm: int, *, day: int | None = None, until_ms: int | None = None,
        segment: int | None = None, new: bool | None = None,
    ) -> ArmUsers:  # fmt: skip
        """Users of one arm with a metric's sums, and their earlier behaviour as covariates. ``day``: of that
        day only; for a metric per user, only users whose day ended by ``until_ms``. ``segment``, ``new``
        (nothing was shown before): only these users."""
        chosen = self._in_arm(arm)
        if segment is not None:
            chosen &= self._column("segment") == segment
        seen_before = self._column("before")[:, self.sums.index(SHOWN)] > 0
        if new is not None:
            chosen &= seen_before != new
        if day is not None and metric.denominator == USER and until_ms is not None:
            chosen &= self._column("exposed_ms") + (day + 1) * self._day_ms <= until_ms
        after_UDS, before_US = self._column("after")[chosen], self._column("before")[chosen]
        after_US = after_UDS.sum(1) if day is None else after_UDS[:, day]
        numerator = self.sums.index(metric.numerator)
        denominators, covariates = np.ones(int(chosen.sum())), [before_US[:, numerator]]
        if metric.denominator != USER:
            denominator = self.sums.index(metric.denominator)
            denominators = after_US[:, denominator]
            covariates.append(before_US[:, denominator])
        covariates_UK = np.column_stack([*covariates, seen_before[chosen]])
        return ArmUsers(after_US[:, numerator], denominators, covariates_UK)

    def daily(self, metric: Metric, arm: int) -> tuple[Floats, Floats]:
        """Running sums (U, D) of numerator and denominator of an arm's users. A user counts in a denominator
        ``user`` from the day of the first shown item on."""
        after_UDS = self._column("after")[self._in_arm(arm)].cumsum(1)
        numerators_UD = after_UDS[:, :, self.sums.index(metric.numerator)]
        if metric.denominator == USER:
            shown_UD = after_UDS[:, :, self.sums.index(SHOWN)]
            return numerators_UD, (shown_UD > 0).astype(np.float64)
        return numerators_UD, after_UDS[:, :, self.sums.index(metric.denominator)]

    def _column(self, name: str) -> NDArray[Any]:
        return self._arrays[name][: len(self)]

    def _in_arm(self, arm: int) -> NDArray[np.bool_]:
        mask: NDArray[np.bool_] = (self._column("arm") == arm) & ~self._column("crossed")
        return mask

    def _row(self, user: int) -> int | None:
        row = self._rows.get(user)
        if row is not None:
            return row
        if self.sampled < 1 and not in_sample(user, self.sampled):
            return None
        if len(self._rows) >= self._most:
            self._halve()
            return self._row(user)
        row = self._rows[user] = len(self._rows)
        if row >= len(self._arrays["key"]):
            for name, array in self._arrays.items():
                self._arrays[name] = np.concatenate([array, _empty_like(name, array)])
        self._arrays["key"][row] = user
        return row

    def _halve(self) -> None:
        self.sampled /= 2
        keys = self._column("key").tolist()
        rows = [row for row, key in enumerate(keys) if in_sample(key, self.sampled)]
        for name, array in self._arrays.items():
            self._arrays[name] = _empty_like(name, array)
            self._arrays[name][: len(rows)] = array[rows]
        self._rows = {keys[row]: place for place, row in enumerate(rows)}


def _empty_like(name: str, array: NDArray[Any]) -> NDArray[Any]:
    return np.full_like(array, NOBODY) if name == "arm" else np.zeros_like(array)
