"""From scores to a list: a Plackett–Luce draw with two kinds of exploration and closed-form propensities.

At each rank one of the remaining items is drawn. With probability q, the quota, it is a trial item, drawn by
trust × softmax(score / (τ · HEAT)), where trust falls from 1 to 0 as an item is shown. Otherwise, and
wherever no trial item is left, it is any item: with probability 1 - ε by softmax(score / τ) (Plackett 1975,
Luce 1959), with ε uniformly. Scores are diversified at each rank: an item loses ``diversity`` × its largest
cosine (0 at least) to the items above it (maximal marginal relevance, Carbonell and Goldstein 1998).

The propensity, P(item at this rank | ranks above, policy, candidates), is the mixture's probability at that
rank, exactly. Draws are hashes of (seed, request, rank): the same request gives the same list. An item that
is pinned to a rank has propensity 1; all other ranks are drawn from the rest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recsys.events.hashing import uniform
from serving.request import Slate
from serving.selection.draw_kernels import draw_list

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]
# Factor on τ among trial items: little data sets a mild preference, and each item gets its turn.
HEAT: Final = 5.0


@dataclass(frozen=True)
class SamplingParams:
    """Parameters of the draw at a rank: τ, ε, the quota q of trial items, and the penalty on similarity."""

    temperature: float
    explore: float
    quota: float = 0.0
    diversity: float = 0.0

    @property
    def numbers(self) -> Floats:
        return np.array([self.temperature, self.explore, self.quota, self.diversity, HEAT])


def level(scores_N: NDArray[np.floating]) -> float:
    """The 0.9 quantile of the absolute values of the scores that are numbers; 0 where none is."""
    sizes_N = np.abs(scores_N[np.isfinite(scores_N)])
    high = len(sizes_N) * 9 // 10
    return float(np.partition(sizes_N, high)[high]) if len(sizes_N) else 0.0


# So cold that the best remaining item is drawn for certain; of equals, one of them.
BY_SCORE: Final = SamplingParams(temperature=1e-30, explore=0.0)


@dataclass(frozen=True)
class Cap:
    """At most ``at_most`` (1 or more) items of one group in a list, and at most ``run`` one after the other,
    while others are left (0: any number). ``groups_N``: 0 is no group."""

    name: str
    groups_N: Indices
    at_most: int
    run: int = 0


@dataclass(frozen=True)
class SamplingInput:
    """Candidates (N) as one policy scores them: the input of a draw, without request and length.

    NaN scores rank below all others: they are drawn, evenly, once nothing else is left. ``trust_N`` is above
    0 for trial items. ``vectors_NV``, of any length, measure similarity. ``open_N`` (None: all) may be drawn.
    ``pinned`` are positions by rank: they ignore full caps, count for caps and similarity from the first rank
    on, and move up where all others run out before.
    """

    scores_N: NDArray[np.floating]
    params: SamplingParams
    caps: Sequence[Cap] = ()
    trust_N: Floats | None = None
    vectors_NV: NDArray[np.float32] | None = None
    open_N: Mask | None = None
    pinned: Mapping[int, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.scores_N)

    def pinned_R(self, n: int) -> Indices:
        """Pinned position of each of ``n`` ranks, -1 for none."""
        pinned_R = np.full(n, -1, np.int64)
        for rank, position in self.pinned.items():
            if rank < n:
                pinned_R[rank] = position
        return pinned_R

    @property
    def groups(self) -> Indices:
        """Group of each candidate by cap, (caps, N)."""
        groups = np.array([cap.groups_N for cap in self.caps], np.int64)
        return groups.reshape(len(self.caps), len(self))

    @property
    def limits(self) -> Indices:
        return np.array([cap.at_most for cap in self.caps], np.int64)

    @property
    def runs(self) -> Indices:
        return np.array([cap.run for cap in self.caps], np.int64)

    @property
    def trust(self) -> Floats:
        return np.zeros(len(self)) if self.trust_N is None else self.trust_N

    @property
    def directions_VN(self) -> NDArray[np.float32]:
        """The vectors with norm 1, or 0; (0, N) without a penalty on similarity."""
        vectors_NV = self.vectors_NV
        if vectors_NV is None or not self.params.diversity:
            return np.zeros((0, len(self)), np.float32)
        lengths = np.sqrt((vectors_NV * vectors_NV).sum(1, keepdims=True))
        return np.ascontiguousarray((vectors_NV / np.maximum(lengths, np.float32(1e-12))).T)

    def remaining(self) -> Mask:
        """Candidates that may be drawn at first; a copy."""
        return np.ones(len(self), np.bool_) if self.open_N is None else self.open_N.copy()


def sample_slate(given: SamplingInput, n: int, *, request_id: str, seed: int = 0) -> Slate:
    """Draws up to ``n`` open candidates; fewer where they run out."""
    n = max(n, 0)
    positions, branches = np.empty(n, np.int64), np.empty(n, np.int64)
    propensities, closed = np.empty(n), np.zeros(len(given.caps), np.int64)
    draws = np.array([uniform(seed, request_id, rank) for rank in range(n)], np.float64)
    count = draw_list(
        given.scores_N.astype(np.float64), given.trust, given.directions_VN, given.groups,
        given.limits, given.runs, given.remaining(), given.pinned_R(n), draws, given.params.numbers,
        positions, propensities, branches, closed,
    )  # fmt: skip
    by_quota = branches[:count] == 2
    return Slate(
        positions[:count],
        propensities[:count],
        by_quota,
        int(by_quota.sum() + (branches[:count] == 1).sum()),
        {cap.name: int(number) for cap, number in zip(given.caps, closed, strict=True)},
    )
