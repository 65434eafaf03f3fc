"""Two simulated models of a given AUC: their predictions of shown examples, step by step.

Each sees an example's true logit through noise of its own, part of which stays with the user; the noise
determines its AUC.
"""

from dataclasses import dataclass
from math import pi
from typing import Final

import numpy as np
from numpy.typing import NDArray

from experiments.statistics.comparison import PairedPredictions
from recsys.model.prediction_metrics import auc

Floats = NDArray[np.float64]
STEP: Final = 128  # examples of a step that are scored
LIST: Final = 8  # of one user in a row
POOL: Final = 100  # candidates of a list
_TEMPERATURE: Final = 0.03
_MEAN, _SPREAD = -0.6, 1.3  # of true logits
_OF_USER: Final = 0.3  # the share of a model's noise variance that stays with a user
_SHARED: Final = 0.8  # the correlation of two models' noise
_USERS: Final = 2_000
_LARGE: Final = 400_000


@dataclass(frozen=True)
class Pair:
    """Two models by the standard deviations of their noise. ``sure``: both ignore their noise, and so are
    overconfident."""

    live: float
    candidate: float
    sure: bool = False


def predicted(seen_N: Floats, noise: float, sure: bool = False) -> Floats:
    """Probability from a logit seen through noise: calibrated (MacKay 1992, equation for the moderated
    output), or overconfident."""
    if sure:
        out: Floats = 1 / (1 + np.exp(-seen_N))
        return out
    shrinkage = _SPREAD**2 / (_SPREAD**2 + noise**2)
    mean_N, variance = _MEAN + shrinkage * (seen_N - _MEAN), shrinkage * noise**2
    calibrated: Floats = 1 / (1 + np.exp(-mean_N / np.sqrt(1 + pi * variance / 8)))
    return calibrated


class Stream:
    """Examples of a pair of models, step by step. ``chosen``: live draws each list from a pool of ``POOL``,
    as a serving line does; else lists are random."""

    def __init__(self, pair: Pair, seed: int, users: int = _USERS, chosen: bool = False) -> None:
        self._pair, self._draw, self._chosen = pair, np.random.default_rng(seed), chosen
        self._users_2U = _correlated(self._draw, users)

    def step(self, size: int = STEP) -> PairedPredictions:
        draw, pair, lists = self._draw, self._pair, -(-size // LIST)
        pool = POOL if self._chosen else LIST
        users = draw.integers(0, self._users_2U.shape[1], lists).repeat(pool)
        true_N = draw.normal(_MEAN, _SPREAD, lists * pool)
        noise_2N = np.sqrt(_OF_USER) * self._users_2U[:, users] + np.sqrt(1 - _OF_USER) * _correlated(
            draw, lists * pool
        )
        live = predicted(true_N + pair.live * noise_2N[0], pair.live, pair.sure)
        candidate = predicted(true_N + pair.candidate * noise_2N[1], pair.candidate, pair.sure)
        labels = (draw.random(lists * pool) < 1 / (1 + np.exp(-true_N))).astype(np.float64)
        shown = self._shown_places(live, lists, pool)[:size]
        return PairedPredictions(users[shown], live[shown], candidate[shown], labels[shown])

    def _shown_places(self, live_N: Floats, lists: int, pool: int) -> NDArray[np.int64]:
        """Places of shown examples, drawn without replacement by softmax (Gumbel's trick)."""
        if pool == LIST:
            return np.arange(lists * pool)
        keys = live_N / _TEMPERATURE + self._draw.gumbel(size=len(live_N))
        best = np.argsort(-keys.reshape(lists, pool), axis=1)[:, :LIST]
        return (best + pool * np.arange(lists)[:, None]).ravel()


def _correlated(draw: np.random.Generator, size: int) -> Floats:
    shared, own = draw.normal(size=size), draw.normal(size=(2, size))
    out: Floats = np.sqrt(_SHARED) * shared + np.sqrt(1 - _SHARED) * own
    return out


def noise_for(wanted: float) -> float:
    """Noise with which a model has this AUC, by bisection over one large sample."""
    draw = np.random.default_rng(0)
    true_N, noise_N = draw.normal(_MEAN, _SPREAD, _LARGE), draw.normal(size=_LARGE)
    labels = draw.random(_LARGE) < 1 / (1 + np.exp(-true_N))
    low, high = 0.0, 10.0
    for _ in range(20):
        middle = (low + high) / 2
        if auc(true_N + middle * noise_N, labels) > wanted:
            low = middle
        else:
            high = middle
    return low


@dataclass(frozen=True)
class RunEnd:
    """End of a run: promoted, held for good, or open; and the number of examples."""

    how: str
    examples: int
