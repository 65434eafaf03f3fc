"""EASE, a linear item-to-item model in closed form (Steck, 2019, "Embarrassingly Shallow Autoencoders")."""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import spotrf, spotri
from scipy.sparse import csr_array

from replay.judging.bounded_state import Floats, Indices, NewestItems

_PENALTY: Final = 200.0  # of the weights; published ones are 200 to 1,000 with more rows
_ITEMS: Final = 3_000  # most engaged items
_HISTORY: Final = 200  # newest items of a user
_AT_LEAST: Final = 1_000  # rows
_GROWTH: Final = 1.1


class Ease:
    """Weights B between items that reproduce each user's items from the others: B = I − P / diag(P) by
    column, where P = (X'X + λI)⁻¹ and X is 1 for each user and item of the user; so B's diagonal is 0.

    Fitted when scores are requested, if the rows have grown by a tenth since the last fit and are at least
    ``at_least``; before the first fit it has no scores. State: the newest 200 items of users
    (``NewestItems``) and 3,000 × 3,000 weights (36 MB, while fitting 200 MB). A fit takes at most seconds.
    """

    name = "EASE"

    def __init__(
        self, penalty: float = _PENALTY, most_items: int = _ITEMS, at_least: int = _AT_LEAST
    ) -> None:
        self._penalty, self._most_items = penalty, most_items
        self._rows, self._due_rows = 0, at_least
        self._users = NewestItems(_HISTORY)
        self._items, self._place_of = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self._weights = np.zeros((0, 0), np.float32)
        self.fits = 0

    def learn(self, user_id: str, item: int, time_ms: int) -> None:
        self._rows += 1
        self._users.add(user_id, item)

    def scores(self, user_id: str, now_ms: int) -> tuple[Indices, Floats]:
        if self._rows >= self._due_rows:
            self._due_rows = max(self._rows + 1, int(self._rows * _GROWTH))
            self._fit()
        own = np.array(self._users.of(user_id), np.int64)
        places = self._place_of[own[own < len(self._place_of)]]
        places = places[places >= 0]
        if not len(places):
            return np.zeros(0, np.int64), np.zeros(0)
        return self._items, self._weights[places].sum(0).astype(np.float64)

    def _fit(self) -> None:
        users = self._users.lists()
        items = np.concatenate([np.array(own, np.int64) for own in users])
        counts = np.bincount(items)
        self._items = np.argsort(-counts, kind="stable")[: self._most_items]
        self._items = self._items[counts[self._items] > 0]
        self._place_of = np.full(len(counts), -1, np.int64)
        self._place_of[self._items] = np.arange(len(self._items))
        rows, columns = np.repeat(np.arange(len(users)), [*map(len, users)]), self._place_of[items]
        among = columns >= 0
        shape = len(users), len(self._items)
        ones = np.ones(int(among.sum()), np.float32)
        binary = csr_array((ones, (rows[among], columns[among])), shape)
        self._weights = _weights((binary.T @ binary).toarray(), self._penalty)
        self.fits += 1


def _weights(gram_II: NDArray[np.float32], penalty: float) -> NDArray[np.float32]:
    """B of X'X. By Cholesky's decomposition, a third of the work of a general inverse."""
    gram_II[np.diag_indices_from(gram_II)] += penalty
    lower_II, _ = spotrf(gram_II, lower=True, overwrite_a=True)
    inverse_II, _ = spotri(lower_II, lower=True, overwrite_c=True)
    inverse_II = np.tril(inverse_II) + np.tril(inverse_II, -1).T
    weights_II: NDArray[np.float32] = inverse_II / -np.diag(inverse_II)
    np.fill_diagonal(weights_II, 0.0)
    return weights_II
