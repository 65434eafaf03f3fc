"""What a candidate would retrieve, beside live: recall@300 of the items that viewers engaged with.

Each model searches all living items exactly, with its own user side and its own item vectors, for the session
as it was served; both as of one step. A hit is an engaged item among the best 300. What most viewers would be
given first says whether a model gives everybody the same.
"""

# E engaged examples, N items, V vector

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from recsys.features.catalogue import Catalogue
from recsys.features.feature_set import FeatureSet
from recsys.model.batch import Batch
from recsys.model.model import Lookup, Model, padded
from recsys.model.retrieval_vectors import content_vectors, field_vectors

Keys = NDArray[np.int64]
Floats = NDArray[np.float32]
BEST: Final = 300
PICKS: Final = 10
_MOST_ITEMS: Final = 100_000  # searched: of more, those with the lowest hashes
_TOGETHER: Final = 64  # viewers


@dataclass(frozen=True)
class Weights:
    """A model's rows by table, as a function of keys, and the flat dense parameters that are served, which
    ``model`` is given while it searches."""

    rows: Callable[[str, Keys], Floats]
    dense: Floats
    model: Model


class Found(NamedTuple):
    """Whether each engaged item was among the best (E,), and the share of the commonest picks."""

    hits_E: NDArray[np.bool_]
    picks: float


def sorted_rows(
    tables: Mapping[str, tuple[Keys, Floats]], initial: Callable[[str, Keys], Floats]
) -> Callable[[str, Keys], Floats]:
    """Rows of a snapshot by key; those it doesn't have are ``initial``."""
    ordered = {name: (order := np.argsort(keys), keys[order]) for name, (keys, _) in tables.items()}

    def rows(table: str, keys: Keys) -> Floats:
        order, known = ordered[table]
        out = initial(table, keys)
        if len(known):
            at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
            there = known[at] == keys
            out[there] = tables[table][1][order[at[there]]]
        return out

    return rows


class Search:
    """The items that are searched, and for whom. ``batch``: of engaged examples, each with its item."""

    def __init__(
        self, features: FeatureSet, dim: int, catalogue: Catalogue, batch: Batch, lookup: Lookup
    ) -> None:
        """``dim``: of the vectors, the same for all models."""
        self._batch, self._lookup = batch, lookup
        alive = np.flatnonzero(catalogue.alive)
        if len(alive) > _MOST_ITEMS:  # a key is a hash: the lowest are a fair sample
            alive = alive[np.argsort(catalogue.keys[alive, 0])[:_MOST_ITEMS]]
        self._keys_N = catalogue.keys[alive, 0].copy()
        self._content_NV = _content(features, catalogue, alive, dim)
        order = np.argsort(self._keys_N)
        at = np.searchsorted(self._keys_N[order], batch.item_B)
        at = order[np.minimum(at, len(order) - 1)] if len(order) else np.zeros(len(batch), np.int64)
        self.known_E = (
            self._keys_N[at] == batch.item_B if len(order) else np.zeros(len(batch), bool)
        )
        self._item_E = at

    def run(self, weights: Weights) -> Found:
        """What one model finds, for the examples whose items are there (``known_E``)."""
        items_NV = self._content_NV + weights.rows("items", self._keys_N)
        users_EV = self._users(weights)
        hits, picked = np.zeros(len(users_EV), np.bool_), np.zeros(len(items_NV), np.int64)
        for start in range(0, len(users_EV), _TOGETHER):
            its = slice(start, start + _TOGETHER)
            scores = users_EV[its] @ items_NV.T
            own = np.take_along_axis(scores, self._item_E[its, None], 1)
            hits[its] = ((scores > own).sum(1) < BEST) & np.isfinite(scores).all(1)
            picked += np.bincount(_best(scores).ravel(), minlength=len(items_NV))
        commonest = np.sort(picked)[-PICKS:].sum() / max(1, picked.sum())
        return Found(hits[self.known_E], float(commonest))

    def _users(self, weights: Weights) -> Floats:
        weights.model.write_dense(weights.dense)
        keys = self._lookup.keys
        users, items = (padded(weights.rows(name, keys[name])) for name in ("users", "items"))
        with torch.inference_mode():
            out: Floats = weights.model.user_vectors(
                self._batch, self._lookup, users, items
            ).numpy()
        return out


def _best(scores_EN: Floats) -> NDArray[np.int64]:
    count = min(PICKS, scores_EN.shape[1])
    return np.argpartition(-scores_EN, count - 1, axis=1)[:, :count]


def _content(features: FeatureSet, catalogue: Catalogue, indices: Keys, dim: int) -> Floats:
    columns: Sequence[Any] = features.group_columns()
    content = content_vectors(catalogue.keys[indices][:, columns], dim)
    if features.vector_fields:
        own = catalogue.numbers[indices][:, -features.vector_columns :]
        content = content + field_vectors(own, features.vector_fields, dim)
    return content
