"""What each user of an experiment did, by arm, before and since they were given it: arrays that only grow.

A user counts from the first list that was answered under an arm (the exposure), whether or not anything of it
was shown. What was shown before is a covariate, what is shown since counts for the arm, by days since.
A user takes 8 · sums · (days + 1) bytes and about 150 more. Beyond ``most_users`` half of them leave, by a
hash of the user that knows nothing of arms, and half of those to come; what is left is as good a sample. How
many users each arm has is counted apart, of all of them (experiments/statistics/exposure_counts.py).
"""

# U users, N rows of a call, S sums, D days since exposure

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from experiments.assignment.metric import SHOWN, USER, Metric
from experiments.statistics.effect import ArmUsers
from experiments.statistics.exposure_counts import ExposureCounts, in_sample

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
DAY_MS: Final = 86_400_000
DAYS: Final = 8  # a week by days, and all that is later
NOBODY: Final = -1  # in place of an arm: not exposed, or not under this experiment
_FIRST: Final = 1024  # users that there is room for at once


class UserOutcomes:
    """Of one experiment. ``arms``: by name, the control first. ``sums``: their names (experiments/assignment/metric.py).

    ``since_ms``: days are counted from there, for all alike, instead of from each user's exposure; a day may
    be as long as one likes.
    """

    def __init__(
        self,
        arms: Sequence[str],
        sums: Sequence[str],
        days: int = DAYS,
        most_users: int = 200_000,
        since_ms: int | None = None,
        day_ms: int = DAY_MS,
    ) -> None:
        self.arms, self.sums, self.days = tuple(arms), tuple(sums), days
        self._most, self._since_ms, self._day_ms = most_users, since_ms, day_ms
        self.exposed = ExposureCounts(len(arms))
        self.sampled = 1.0  # the share of users of whom it is in_sample what they did
        self.crossed = 0  # users who were seen in more than one arm, which can't be
        self.outside = 0  # shown to exposed users, but not under the arm: its traffic had ended
        self._rows: dict[int, int] = {}
        self._arrays: dict[str, NDArray[Any]] = {
            "key": np.zeros(_FIRST, np.int64),
            "arm": np.full(_FIRST, NOBODY, np.int8),
            "exposed_ms": np.zeros(_FIRST, np.int64),
            "segment": np.zeros(_FIRST, np.int16),
            "crossed": np.zeros(_FIRST, np.bool_),
            "before": np.zeros((_FIRST, len(sums))),
            "after": np.zeros((_FIRST, days, len(sums))),
        }

    def __len__(self) -> int:
        """ArmUsers that are held, exposed or not yet."""
        return len(self._rows)

    @property
    def nbytes(self) -> int:
        return (
            sum(its.nbytes for its in self._arrays.values())
            + 100 * len(self._rows)
            + self.exposed.nbytes
        )

    def expose(self, users_N: Ints, arms_N: Ints, time_ms_N: Ints, segments_N: Ints) -> None:
        """Lists that were answered under an arm, in order. ``users_N``: 64-bit keys of users."""
        self.exposed.add(users_N, arms_N)
        for user, arm, time_ms, segment in zip(
            users_N.tolist(), arms_N.tolist(), time_ms_N.tolist(), segments_N.tolist(), strict=True
        ):
            row = self._row(user)
            if row is None:
                continue
            its = self._arrays
            if its["arm"][row] == NOBODY:
                its["arm"][row], its["exposed_ms"][row] = arm, time_ms
                its["segment"][row] = segment
            elif its["arm"][row] != arm and not its["crossed"][row]:
                its["crossed"][row] = True
                self.crossed += 1

    def add(self, users_N: Ints, arms_N: Ints, shown_ms_N: Ints, values_NS: Floats) -> None:
        """Shown items, or what corrects them: whose, under which arm (or NOBODY), when they were served, and
        what they add to each sum."""
        for user in users_N.tolist():
            self._row(user)
        found = [self._rows.get(user) for user in users_N.tolist()]  # places that stay
        here = np.array([row is not None for row in found], np.bool_)
        rows = np.array([row for row in found if row is not None], np.int64)
        arms, shown_ms, values = arms_N[here], shown_ms_N[here], values_NS[here]
        its = self._arrays
        given, exposed_ms = its["arm"][rows], its["exposed_ms"][rows]
        under = (arms != NOBODY) & (arms == given)
        before = (arms == NOBODY) & ((given == NOBODY) | (shown_ms < exposed_ms))
        self.outside += int((~under & ~before).sum())
        np.add.at(its["before"], rows[before], values[before])
        start_ms = exposed_ms if self._since_ms is None else np.full(len(rows), self._since_ms)
        days = np.clip((shown_ms - start_ms) // self._day_ms, 0, self.days - 1)
        np.add.at(its["after"], (rows[under], days[under]), values[under])

    def counts(self) -> list[int]:
        """ExposureCounts users by arm, also those of whom nothing else is in_sample."""
        return self.exposed.counts()

    def shown(self, arm: int) -> float:
        """Items shown under an arm."""
        mine = self._mine(arm)
        return float(self._arrays["after"][: len(self)][mine, :, self.sums.index(SHOWN)].sum())

    def segments(self) -> list[int]:
        """The segments that exposed users are in."""
        held = slice(len(self))
        exposed = self._arrays["arm"][held] != NOBODY
        return [int(s) for s in np.unique(self._arrays["segment"][held][exposed])]

    def users(
        self,
        metric: Metric,
        arm: int,
        *,
        day: int | None = None,
        until_ms: int | None = None,
        segment: int | None = None,
        new: bool | None = None,
    ) -> ArmUsers:
        """One arm's users with the sums of a metric, and what they did before as covariates.

        ``day``: of that day alone; where the metric is for each user, only of users whose day was over
        ``until_ms``. ``segment``, ``new`` (nothing was shown before): of these users alone.
        """
        held, its = slice(len(self)), self._arrays
        mine = self._mine(arm)
        if segment is not None:
            mine &= its["segment"][held] == segment
        seen_before = its["before"][held, self.sums.index(SHOWN)] > 0
        if new is not None:
            mine &= seen_before != new
        if day is not None and metric.denominator == USER and until_ms is not None:
            mine &= its["exposed_ms"][held] + (day + 1) * self._day_ms <= until_ms
        after_UDS, before_US = its["after"][held][mine], its["before"][held][mine]
        after_US = after_UDS.sum(1) if day is None else after_UDS[:, day]
        above = self.sums.index(metric.numerator)
        ones = np.ones(int(mine.sum()))
        if metric.denominator == USER:
            return ArmUsers(after_US[:, above], ones, np.column_stack(
                [before_US[:, above], seen_before[mine]]))  # fmt: skip
        below = self.sums.index(metric.denominator)
        return ArmUsers(after_US[:, above], after_US[:, below], np.column_stack(
            [before_US[:, above], before_US[:, below], seen_before[mine]]))  # fmt: skip

    def daily(self, metric: Metric, arm: int) -> tuple[Floats, Floats]:
        """An arm's users by running sums (U, D) of numerator and denominator, up to each day. A user counts
        in a denominator ``user`` from the day of their first shown item on."""
        after_UDS = self._arrays["after"][: len(self)][self._mine(arm)].cumsum(1)
        above = after_UDS[:, :, self.sums.index(metric.numerator)]
        if metric.denominator == USER:
            return above, (after_UDS[:, :, self.sums.index(SHOWN)] > 0).astype(np.float64)
        return above, after_UDS[:, :, self.sums.index(metric.denominator)]

    def _mine(self, arm: int) -> NDArray[np.bool_]:
        held = slice(len(self))
        out: NDArray[np.bool_] = (self._arrays["arm"][held] == arm) & ~self._arrays["crossed"][held]
        return out

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
            for name, its in self._arrays.items():
                more = np.full_like(its, NOBODY) if name == "arm" else np.zeros_like(its)
                self._arrays[name] = np.concatenate([its, more])
        self._arrays["key"][row] = user
        return row

    def _halve(self) -> None:
        self.sampled /= 2
        keys = self._arrays["key"][: len(self)].tolist()
        left = [row for row, key in enumerate(keys) if in_sample(key, self.sampled)]
        for name, its in self._arrays.items():
            room = np.full_like(its, NOBODY) if name == "arm" else np.zeros_like(its)
            room[: len(left)] = its[left]
            self._arrays[name] = room
        self._rows = {keys[row]: place for place, row in enumerate(left)}
