"""From scores to a list: a Plackett–Luce draw with a uniform share, its propensities in closed form.

At each rank an item is drawn from those that remain: with probability 1 - ε by softmax(score / τ) (Plackett
1975, Luce 1959), with ε uniformly. The propensity, P(item at this rank | ranks above, policy), is the
mixture's probability at that rank, exactly. Draws are hashes of (seed, request, rank): the same request
gives the same list.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys.hashing import uniform

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Drawn:
    """Positions among the candidates, in rank order, with their propensities."""

    positions: Indices
    propensities: Floats


def draw(
    scores_N: NDArray[np.floating],
    n: int,
    *,
    temperature: float,
    explore: float,
    request_id: str,
    groups_N: NDArray[np.int64] | None = None,
    per_group: int = 0,
    seed: int = 0,
) -> Drawn:
    """Draws up to ``n`` candidates. Not more than ``per_group`` of one group (0: any number); a group of 0
    is no group. Fewer come where the candidates run out."""
    left_N = np.ones(len(scores_N), np.bool_)
    weights_N = np.exp(
        (scores_N.astype(np.float64) - np.max(scores_N, initial=-np.inf)) / temperature
    )
    taken: dict[int, int] = {}
    positions, propensities = [], []
    for rank in range(min(n, len(scores_N))):
        if not left_N.any():
            break
        p_N = mixture(weights_N, left_N, explore)
        position = _at(p_N, uniform(seed, request_id, rank))
        positions.append(position)
        propensities.append(p_N[position])
        left_N[position] = False
        if groups_N is not None and per_group:
            group = int(groups_N[position])
            taken[group] = taken.get(group, 0) + 1
            if group and taken[group] >= per_group:
                left_N[groups_N == group] = False
    return Drawn(np.array(positions, np.int64), np.array(propensities))


def mixture(weights_N: Floats, left_N: NDArray[np.bool_], explore: float) -> Floats:
    """The probability of each candidate at the next rank: 0 for those that are gone, 1 in sum."""
    soft_N = np.where(left_N, weights_N, 0.0)
    total = soft_N.sum()
    even_N: Floats = left_N / left_N.sum()
    if total <= 0.0:  # what is left is so far behind that its weights are 0
        return even_N
    out: Floats = (1.0 - explore) * soft_N / total + explore * even_N
    return out


def _at(p_N: Floats, u: float) -> int:
    """The candidate at the quantile u of the probabilities, never one with probability 0."""
    cumulative = np.cumsum(p_N)
    position = int(np.searchsorted(cumulative, u * cumulative[-1], side="right"))
    return min(position, int(np.flatnonzero(p_N)[-1]))
