"""From scores to a list: a Plackett–Luce draw with a uniform share, its propensities in closed form.

At each rank an item is drawn from those that remain: with probability 1 - ε by softmax(score / τ) (Plackett
1975, Luce 1959), with ε uniformly. The propensity, P(item at this rank | ranks above, policy), is the
mixture's probability at that rank, exactly. Draws are hashes of (seed, request, rank): the same request
gives the same list. An item that is fixed to a rank stands there with propensity 1; all other ranks are drawn
from the rest.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys.hashing import uniform

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]


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
    fixed: Mapping[int, int] | None = None,
) -> Drawn:
    """Draws up to ``n`` candidates. Not more than ``per_group`` of one group (0: any number); a group of 0
    is no group. Fewer come where the candidates run out.

    ``fixed`` are positions by their ranks: they aren't drawn, stand whatever their group has, and count for
    it from the first rank on. Where all others have run out before, they move up, in order.

    A score that is no number is below all others: it is drawn, evenly, once nothing else is left.
    """
    sound_N = ~np.isnan(scores_N)
    left_N = np.ones(len(scores_N), np.bool_)
    taken: dict[int, int] = {}

    def take(position: int) -> None:
        left_N[position] = False
        if groups_N is not None and per_group:
            group = int(groups_N[position])
            taken[group] = taken.get(group, 0) + 1
            if group and taken[group] >= per_group:
                left_N[groups_N == group] = False

    waiting = dict(sorted((rank, at) for rank, at in (fixed or {}).items() if rank < n))
    for position in waiting.values():
        take(position)
    positions, propensities = [], []
    for rank in range(min(n, len(scores_N))):
        if waiting and (rank in waiting or not left_N.any()):
            position, propensity = waiting.pop(rank if rank in waiting else min(waiting)), 1.0
        elif left_N.any():
            open_N = left_N & sound_N if (left_N & sound_N).any() else left_N
            p_N = mixture(scores_N, open_N, temperature, explore)
            position = _at(p_N, uniform(seed, request_id, rank))
            propensity = float(p_N[position])
            take(position)
        else:
            break
        positions.append(position)
        propensities.append(propensity)
    return Drawn(np.array(positions, np.int64), np.array(propensities, np.float64))


def mixture(
    scores_N: NDArray[np.floating], open_N: Mask, temperature: float, explore: float
) -> Floats:
    """The probability of each candidate at the next rank: 0 for those that aren't open, 1 in sum.

    Infinite scores share evenly among themselves what the softmax gives.
    """
    scores = scores_N[open_N].astype(np.float64)
    best = scores.max()
    if np.isfinite(best):
        with np.errstate(over="ignore"):  # far behind the best is -inf, and its weight 0
            weights = np.exp((scores - best) / temperature)
    else:
        weights = np.where(scores == best, 1.0, 0.0) if best == best else np.ones(len(scores))
    out = np.zeros(len(scores_N))
    out[open_N] = (1.0 - explore) * (weights / weights.sum()) + explore / len(scores)
    return out


def _at(p_N: Floats, u: float) -> int:
    """The candidate at the quantile u of the probabilities, never one with probability 0."""
    cumulative = np.cumsum(p_N)
    position = int(np.searchsorted(cumulative, u * cumulative[-1], side="right"))
    return min(position, int(np.flatnonzero(p_N)[-1]))
