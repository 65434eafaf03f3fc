"""Weights of all arms' examples in the line of one arm, by logistic regression over what was shown.

The weight is w(x) = P(arm | x) / P(arm); experiments/assignment/arm_line.py derives it.
"""

# B examples, F features of each, I keys of an item, C cells

from typing import Final

import numpy as np
from numpy.typing import NDArray

from experiments.assignment.arm_line import DIVERTED, WEIGHTED
from recsys.events.hashing import key_of

Floats = NDArray[np.float64]
Keys = NDArray[np.int64]
Mask = NDArray[np.bool_]
_CELLS: Final = 2**14  # features share some 16,000 cells by their hash
_RATE: Final = 0.4
_MAX_WEIGHT: Final = 20.0  # larger weights are mostly chance
# Examples after which the arm's share is mostly that of newer ones, since a ramp changes it.
_MEMORY: Final = 20_000.0
_SCORE_STEPS: Final = 20
_SCORE: Final = np.array([key_of("worth", n) for n in range(_SCORE_STEPS + 1)], np.int64)
_LABEL: Final = key_of("label", 1)
_OCTAVES: Final = np.array([key_of("octave", n) for n in range(24)], np.int64)


def arm_features(items_BI: Keys, score_B: Floats, label_B: Mask) -> Keys:
    """Features that distinguish arms, (B, F): keys of the shown item (its own first), its predicted
    probability of the first label, and that label."""
    steps_B = np.clip(score_B * _SCORE_STEPS, 0, _SCORE_STEPS).astype(np.int64)
    outcome_B2 = np.stack([_SCORE[steps_B], np.where(label_B, _LABEL, 0)], 1)
    return np.concatenate([items_BI, outcome_B2], 1)


class ArmWeights:
    """Weights of examples in an arm's line: ``weigh``, then ``learn``, batch by batch in order.

    Online logistic regression on hashed features with Adagrad (Duchi, Hazan and Singer 2011). The intercept
    is the arm's share of the newest examples. The octave of the item's number of impressions is a feature.
    """

    def __init__(self, cells: int = _CELLS) -> None:
        self._theta_C = np.zeros(cells)
        self._squares_C = np.ones(cells)
        self._shown_C = np.zeros(cells)
        self._own, self._all = 0.0, 0.0  # numbers of examples, decaying

    def repeats(self, trains: str, features_BF: Keys, own_B: Mask, draws_B: Floats) -> Floats:
        """Number of times each example is learned (B,): integers whose mean over ``draws_B``, in [0, 1), is
        its weight. Gradients aren't scaled instead, since Adagrad divides by the size of earlier ones."""
        if trains == WEIGHTED:
            return np.floor(self.weigh(features_BF) + draws_B)
        if trains == DIVERTED:
            return np.floor(self.diverted(own_B) + draws_B)
        return np.ones(len(own_B))

    def weigh(self, features_BF: Keys) -> Floats:
        """w (B,) of examples with these features (hashes; 0: none), from earlier batches."""
        if not self._own:
            return np.ones(len(features_BF))
        probability_B = self._probability(*self._cells(features_BF))
        return np.minimum(probability_B / self._share, _MAX_WEIGHT)

    def diverted(self, own_B: Mask) -> Floats:
        """w (B,) if only the arm's own examples are learned and stand for all."""
        if not self._own:
            return own_B.astype(np.float64)
        return np.minimum(own_B / self._share, _MAX_WEIGHT)

    def learn(self, features_BF: Keys, own_B: Mask) -> None:
        """``own_B``: mask of examples of the arm's users."""
        if not len(own_B):
            return
        decay = 1.0 - min(1.0, len(own_B) / _MEMORY)
        self._own = decay * self._own + own_B.sum()
        self._all = decay * self._all + len(own_B)
        if not self._own:
            return
        cells_BF, present_BF = self._cells(features_BF)
        slope_B = self._probability(cells_BF, present_BF) - own_B
        np.add.at(self._shown_C, cells_BF[:, 0], 1.0)
        slope_C = np.zeros(len(self._theta_C))
        np.add.at(slope_C, cells_BF, slope_B[:, None] * present_BF)
        self._squares_C += slope_C**2
        self._theta_C -= _RATE * slope_C / np.sqrt(self._squares_C)

    def export(self) -> dict[str, NDArray[np.float64]]:
        """Copies of all state, for a snapshot."""
        return {
            "theta": self._theta_C.copy(),
            "squares": self._squares_C.copy(),
            "shown": self._shown_C.copy(),
            "counted": np.array([self._own, self._all]),
        }

    def load(self, arrays: dict[str, NDArray[np.float64]]) -> None:
        self._theta_C, self._squares_C = arrays["theta"].copy(), arrays["squares"].copy()
        self._shown_C = arrays["shown"].copy()
        self._own, self._all = arrays["counted"].tolist()

    @property
    def _share(self) -> float:
        return min(1.0, self._own / self._all)

    def _probability(self, cells_BF: Keys, present_BF: Mask) -> Floats:
        """P(arm | x), (B,)."""
        odds = self._share / max(1.0 - self._share, 1e-9)
        logit_B = np.log(odds) + (self._theta_C[cells_BF] * present_BF).sum(1)
        out: Floats = 1.0 / (1.0 + np.exp(-np.clip(logit_B, -30.0, 30.0)))
        return out

    def _cells(self, features_BF: Keys) -> tuple[Keys, Mask]:
        """Cell of each feature and mask of non-zero features; the item's octave is appended."""
        shown_B = self._shown_C[features_BF[:, 0] % len(self._theta_C)]
        octaves_B = np.minimum(np.log2(1.0 + shown_B), len(_OCTAVES) - 1).astype(np.int64)
        all_BF = np.concatenate([features_BF, _OCTAVES[octaves_B][:, None]], 1)
        return all_BF % len(self._theta_C), all_BF != 0
