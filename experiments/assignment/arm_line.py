"""Arms that learn: which line an arm trains, and what counts in it of what the other arms were shown.

Where all arms share a line, what one of them explores teaches the others, so the difference between them
isn't the one between a system that is all treatment and one that is all control. Where an arm's line learns
from the arm's own examples, it is judged by how little it saw. So it learns from all examples, each weighted
by how much more often the arm would show it, if all users were in it, than it is shown:

    w(x) = P(x | arm) / P(x) = P(arm | x) / P(arm)

(Bayes; the weighted training of Si 2023, "Tackling Interference Induced by Data Training Loops in A/B
Tests"). P(arm | x) is told by ``ArmWeights``, a logistic regression over what was shown. Where arms show
the same, it can't tell them apart, all weights are 1, and an arm of 5 % learns from everything.
"""

# B examples, F features of each, C cells

from typing import Final

import numpy as np
from numpy.typing import NDArray

from recsys.events.hashing import key_of

Floats = NDArray[np.float64]
WEIGHTED: Final = "weighted"
DIVERTED: Final = "diverted"
ALL: Final = "all"
# All examples weighted as above; the arm's own alone, weighted by 1 / P(arm); all alike.
TRAINS: Final = (WEIGHTED, DIVERTED, ALL)
MAX_LINE_NAME: Final = 64  # of a line's name (parameter_server/storage/snapshots.py)
# Of an experiment all of whose arms train: candidates and guards are judged on what live answers.
MAX_TRAINED_TRAFFIC: Final = 0.9
_CELLS: Final = 2**14  # features share some 16,000 cells by their hash
_RATE: Final = 0.4
_MOST: Final = 20.0  # no example counts for more: weights beyond are mostly chance
_MEMORY: Final = (
    20_000.0  # examples after which the arm's share is mostly that of newer ones: a ramp changes it
)
_WORTHS: Final = 20  # steps of what an item was thought to be worth
_WORTH: Final = np.array([key_of("worth", n) for n in range(_WORTHS + 1)], np.int64)
_LABEL: Final = key_of("label", 1)
_OCTAVES: Final = np.array([key_of("octave", n) for n in range(24)], np.int64)


def arm_line_name(experiment: str, arm: str) -> str:
    """The name of the line that an arm trains. No candidate may have it: theirs have no dot."""
    return f"{experiment}.{arm}"


def arm_features(
    items_BI: NDArray[np.int64], worth_B: Floats, label_B: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """What tells arms apart, (B, F): the keys of the item that was shown, the item's own first; what it was
    thought to be worth (the first label's probability); whether that label became true."""
    steps_B = np.clip(worth_B * _WORTHS, 0, _WORTHS).astype(np.int64)
    others_B2 = np.stack([_WORTH[steps_B], np.where(label_B, _LABEL, 0)], 1)
    return np.concatenate([items_BI, others_B2], 1)


class ArmWeights:
    """How much each example counts in an arm's line. ``weigh``, then ``learn``, batch by batch in order.

    Online logistic regression on hashed features with Adagrad (Duchi, Hazan and Singer 2011), whose intercept
    is the arm's share of the newest examples: what isn't known of any feature weighs 1. The first feature is
    the item's; how often that was shown since the line began, in octaves, is a feature beside those given.
    """

    def __init__(self, cells: int = _CELLS) -> None:
        self._theta_C = np.zeros(cells)
        self._squares_C = np.ones(cells)
        self._shown_C = np.zeros(cells)
        self._own, self._all = 0.0, 0.0  # examples, forgotten slowly

    def repeats(
        self, trains: str, features_BF: NDArray[np.int64], own_B: NDArray[np.bool_], draws_B: Floats
    ) -> Floats:
        """How often each example is learned (B,): whole numbers whose mean over ``draws_B``, in [0, 1), is
        its weight. Adagrad divides by the size of what came before, so a row all of whose examples weighed
        0.3 would be learned nearly as if they weighed 1."""
        if trains == WEIGHTED:
            return np.floor(self.weigh(features_BF) + draws_B)
        if trains == DIVERTED:
            return np.floor(self.diverted(own_B) + draws_B)
        return np.ones(len(own_B))

    def weigh(self, features_BF: NDArray[np.int64]) -> Floats:
        """w (B,) of examples with these features (hashes; 0: none), by what was learned before them."""
        if not self._own:
            return np.ones(len(features_BF))
        return np.minimum(self._chance(*self._cells(features_BF)) / self._share, _MOST)

    def diverted(self, own_B: NDArray[np.bool_]) -> Floats:
        """w (B,) where the arm's own examples alone are learned from, and stand for all."""
        return np.minimum(own_B / self._share, _MOST) if self._own else own_B.astype(np.float64)

    def learn(self, features_BF: NDArray[np.int64], own_B: NDArray[np.bool_]) -> None:
        """``own_B``: which examples are of users of the arm."""
        if not len(own_B):
            return
        fades = 1.0 - min(1.0, len(own_B) / _MEMORY)
        self._own = fades * self._own + own_B.sum()
        self._all = fades * self._all + len(own_B)
        if not self._own:
            return
        cells_BF, there_BF = self._cells(features_BF)
        slope_B = self._chance(cells_BF, there_BF) - own_B
        np.add.at(self._shown_C, cells_BF[:, 0], 1.0)
        slope_C = np.zeros(len(self._theta_C))
        np.add.at(slope_C, cells_BF, slope_B[:, None] * there_BF)
        self._squares_C += slope_C**2
        self._theta_C -= _RATE * slope_C / np.sqrt(self._squares_C)

    def export(self) -> dict[str, NDArray[np.float64]]:
        """All that it has learned, for a snapshot."""
        return {
            "theta": self._theta_C.copy(),
            "squares": self._squares_C.copy(),
            "shown": self._shown_C.copy(),
            "counted": np.array([self._own, self._all]),
        }

    def load(self, arrays: dict[str, NDArray[np.float64]]) -> None:
        """Goes on from what ``export`` gave."""
        self._theta_C, self._squares_C = arrays["theta"].copy(), arrays["squares"].copy()
        self._shown_C = arrays["shown"].copy()
        self._own, self._all = (float(its) for its in arrays["counted"])

    @property
    def _share(self) -> float:
        return min(1.0, self._own / self._all)

    def _chance(self, cells_BF: NDArray[np.int64], there_BF: NDArray[np.bool_]) -> Floats:
        """P(arm | x), (B,)."""
        odds = self._share / max(1.0 - self._share, 1e-9)
        logit_B = np.log(odds) + (self._theta_C[cells_BF] * there_BF).sum(1)
        out: Floats = 1.0 / (1.0 + np.exp(-np.clip(logit_B, -30.0, 30.0)))
        return out

    def _cells(self, features_BF: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The cell of each feature, and whether there is one: 0 stands for none. Last, that of how often the
        item was shown."""
        shown_B = self._shown_C[features_BF[:, 0] % len(self._theta_C)]
        octaves_B = np.minimum(np.log2(1.0 + shown_B), len(_OCTAVES) - 1).astype(np.int64)
        all_BF = np.concatenate([features_BF, _OCTAVES[octaves_B][:, None]], 1)
        return all_BF % len(self._theta_C), all_BF != 0
