"""What viewers did with what a canary served, beside what they did with live's lists in the same time. Pure.

Other users are in either group, so nothing is paired: the bounds of a difference are those of both means.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from experiments.promotion.promotion import CanaryEngagement
from experiments.statistics.significance import AnytimeEstimate, ClusteredMean

_KINDS = 8  # labels that are looked at, at the most: each takes its share of alpha
_USERS = 4_096  # of either group that are counted: nobody asks for more


class EngagementRates:
    """Shown items with each kind of engagement, of the canary's lists and of live's."""

    def __init__(self, kinds: Sequence[str], alpha: float, tight_at: float) -> None:
        self.kinds = tuple(kinds[:_KINDS])
        each = alpha / (4 * max(1, len(self.kinds)))
        self._means = {
            arm: {kind: ClusteredMean(each, tight_at, at_least=10) for kind in self.kinds}
            for arm in (True, False)
        }
        self._examples = {True: 0, False: 0}
        self._unranked = {True: 0, False: 0}
        self._users: dict[bool, set[int]] = {True: set(), False: set()}

    def add(
        self,
        users_N: NDArray[np.int64],
        canary_N: NDArray[np.bool_],
        labels_NK: NDArray[np.float64],
        ranked_N: NDArray[np.bool_],
    ) -> None:
        """Shown items: whose, by whom served, what was done with them (of each kind), and whether a ranker
        had scored them."""
        for arm in (True, False):
            mine = canary_N == arm
            self._examples[arm] += int(mine.sum())
            self._unranked[arm] += int((mine & ~ranked_N).sum())
            if len(self._users[arm]) < _USERS:
                self._users[arm].update(users_N[mine].tolist())
            for k, kind in enumerate(self.kinds):
                if mine.any():
                    self._means[arm][kind].add(users_N[mine], labels_NK[mine, k])

    def result(self) -> CanaryEngagement:
        gained = {
            kind: _difference(self._means[True][kind], self._means[False][kind])
            for kind in self.kinds
        }
        degraded, live_degraded = (
            self._unranked[arm] / max(1, self._examples[arm]) for arm in (True, False)
        )
        examples, users = self._examples, {arm: len(its) for arm, its in self._users.items()}
        return CanaryEngagement(
            examples[True], examples[False], gained, degraded, live_degraded,
            users[True], users[False],
        )  # fmt: skip


def _difference(ours: ClusteredMean, theirs: ClusteredMean) -> AnytimeEstimate:
    a, b = ours.estimate(), theirs.estimate()
    weight = min(a.weight, b.weight)
    return AnytimeEstimate(a.mean - b.mean, a.low - b.high, a.high - b.low, weight)
