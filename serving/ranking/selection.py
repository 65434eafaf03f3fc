"""From scores to a list: a Plackett–Luce draw with two kinds of exploration, its propensities in closed form.

At each rank an item is drawn from those that remain. With probability q, the quota, it is one on trial: by
trust × softmax(score / (τ · HEAT)) over those on trial, where trust falls from 1 to 0 as an item is shown.
Otherwise, and wherever nothing on trial is left, it is one of all: with probability 1 - ε by
softmax(score / τ) (Plackett 1975, Luce 1959), with ε uniformly. Scores are those after diversification: an
item loses ``diversity`` × its largest cosine (0 at least) to the items above it (maximal marginal relevance,
Carbonell and Goldstein 1998), which is known at each rank.

The propensity, P(item at this rank | ranks above, policy, candidates), is the mixture's probability at that
rank, exactly. Draws are hashes of (seed, request, rank): the same request gives the same list. An item that
is fixed to a rank stands there with propensity 1; all other ranks are drawn from the rest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recsys.events.hashing import uniform
from serving.ranking.draw_kernels import chances, draw_list

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]
HEAT: Final = (
    5.0  # of the draw among items on trial: a little knows what it likes, and each gets its turn
)


@dataclass(frozen=True)
class Chance:
    """How a rank is drawn: τ, ε, the quota q of items on trial, and what nearness costs."""

    temperature: float
    explore: float
    quota: float = 0.0
    diversity: float = 0.0

    @property
    def numbers(self) -> Floats:
        return np.array([self.temperature, self.explore, self.quota, self.diversity, HEAT])


# So cold that the best that is left is drawn for certain; of equals, one of them.
BY_SCORE: Final = Chance(temperature=1e-30, explore=0.0)


@dataclass(frozen=True)
class Cap:
    """Not more than ``at_most`` (1 or more) items of one group in a list. ``groups_N``: 0 is no group."""

    name: str
    groups_N: Indices
    at_most: int


@dataclass(frozen=True)
class Ballot:
    """Candidates (N) as one policy sees them: all that a list is drawn by, but for whom and how long it is.
    ``draw`` says what each part means."""

    scores_N: NDArray[np.floating]
    chance: Chance
    caps: Sequence[Cap] = ()
    trust_N: Floats | None = None
    vectors_NV: NDArray[np.float32] | None = None
    open_N: Mask | None = None
    fixed: Mapping[int, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.scores_N)

    def pinned(self, n: int) -> Indices:
        """The position that stands at each of ``n`` ranks, -1 for none."""
        pinned = np.full(n, -1, np.int64)
        for rank, position in self.fixed.items():
            if rank < n:
                pinned[rank] = position
        return pinned

    @property
    def groups(self) -> Indices:
        """The group of each candidate by cap, (caps, N)."""
        return np.array([cap.groups_N for cap in self.caps], np.int64).reshape(
            len(self.caps), len(self)
        )

    @property
    def most(self) -> Indices:
        return np.array([cap.at_most for cap in self.caps], np.int64)

    @property
    def trust(self) -> Floats:
        return np.zeros(len(self)) if self.trust_N is None else self.trust_N

    @property
    def directions(self) -> NDArray[np.float32]:
        """The vectors, of norm 1, one a column; none where nearness costs nothing."""
        return _directions(self.vectors_NV if self.chance.diversity else None, len(self))

    @property
    def left(self) -> Mask:
        """Who may be drawn at first; a copy."""
        return np.ones(len(self), np.bool_) if self.open_N is None else self.open_N.copy()


@dataclass(frozen=True)
class Drawn:
    """Positions among the candidates, in rank order, with their propensities.

    ``trial_R`` says which ranks the quota took; ``offered``, in how many of those drawn there was something
    on trial. ``closed``: how many candidates each cap shut out. ``teams``: of a list that two policies drew
    in turns, whose each rank is, "" of nobody's; ``shares``: P(the second of them picked it | the list), 0 of
    nobody's; ``drawers``: which of the two drew it, also for nobody, 0 of what is fixed.
    """

    positions: Indices
    propensities: Floats
    trial_R: Mask
    offered: int
    closed: dict[str, int]
    teams: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()
    drawers: tuple[int, ...] = ()


def draw(
    scores_N: NDArray[np.floating],
    n: int,
    chance: Chance,
    *,
    request_id: str,
    caps: Sequence[Cap] = (),
    trust_N: Floats | None = None,
    vectors_NV: NDArray[np.float32] | None = None,
    open_N: Mask | None = None,
    seed: int = 0,
    fixed: Mapping[int, int] | None = None,
) -> Drawn:
    """Draws up to ``n`` candidates of those that are open (None: all). Fewer come where they run out.

    ``trust_N`` is above 0 for those on trial. ``vectors_NV``, of any length, say what is near to what.
    ``fixed`` are positions by their ranks: they aren't drawn, stand whatever cap is full, and count for it
    (and for what is near) from the first rank on. Where all others have run out before, they move up.

    A score that is no number is below all others: it is drawn, evenly, once nothing else is left.
    """
    its = Ballot(scores_N, chance, caps, trust_N, vectors_NV, open_N, fixed or {})
    return draw_from(its, n, request_id=request_id, seed=seed)


def draw_from(its: Ballot, n: int, *, request_id: str, seed: int = 0) -> Drawn:
    """``draw`` of a ballot."""
    n = max(n, 0)
    positions, branches = np.empty(n, np.int64), np.empty(n, np.int64)
    propensities, closed = np.empty(n), np.zeros(len(its.caps), np.int64)
    count = draw_list(
        its.scores_N.astype(np.float64),
        its.trust,
        its.directions,
        its.groups,
        its.most,
        its.left,
        its.pinned(n),
        np.array([uniform(seed, request_id, rank) for rank in range(n)], np.float64),
        its.chance.numbers,
        positions,
        propensities,
        branches,
        closed,
    )
    return Drawn(
        positions[:count],
        propensities[:count],
        branches[:count] == 2,
        int(np.isin(branches[:count], (1, 2)).sum()),
        {cap.name: int(number) for cap, number in zip(its.caps, closed, strict=True)},
    )


def mixture(
    scores_N: NDArray[np.floating], open_N: Mask, chance: Chance, trust_N: Floats | None = None
) -> Floats:
    """The probability of each candidate at the next rank: 0 for those that aren't open, 1 in sum.

    ``scores_N`` are those of the rank, after diversification.
    """
    size = len(scores_N)
    usual, trial, none = np.empty(size), np.empty(size), np.zeros(size)
    trust_N = none if trust_N is None else trust_N
    scores_N = scores_N.astype(np.float64)
    there = chances(scores_N, none, trust_N, np.ones(size), open_N, chance.numbers, usual, trial)
    quota = chance.quota if there else 0.0
    out: Floats = quota * trial + (1.0 - quota) * usual
    return out


def _directions(vectors_NV: NDArray[np.float32] | None, size: int) -> NDArray[np.float32]:
    """The vectors with length 1, one a column; those of length 0 are near to nothing."""
    if vectors_NV is None:
        return np.zeros((0, size), np.float32)
    lengths = np.sqrt((vectors_NV * vectors_NV).sum(1, keepdims=True))
    return np.ascontiguousarray((vectors_NV / np.maximum(lengths, np.float32(1e-12))).T)
