"""Measures a candidate's retrieval beside live's: recall@300 of the items that viewers engaged with.

Each model searches all living items exactly, with its own user tower and item vectors, for the session as it
was served; both as of one step. A hit is an engaged item among the best 300. The share of the most frequent
picks shows whether a model gives everybody the same.
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
_MOST_ITEMS: Final = 100_000  # searched; of a larger catalogue those with the lowest hashes
_TOGETHER: Final = 64  # viewers


@dataclass(frozen=True)
class Weights:
    """A model's rows by table, as a function of keys, and the flat dense parameters that are served, which
    ``model`` is given while it searches."""

    rows: Callable[[str, Keys], Floats]
    dense: Floats
    model: Model


class SearchResult(NamedTuple):
    """Whether each engaged item was among the best (E,), and the share of the most frequent picks."""

    hits_E: NDArray[np.bool_]
    picks: float


def sorted_rows(
    tables: Mapping[str, tuple[Keys, Floats]], initial: Callable[[str, Keys], Floats]
) -> Callable[[str, Keys], Floats]:
    """Rows of a snapshot by key; ``initial`` gives those that it lacks."""
    ordered = {name: (order := np.argsort(keys), keys[order]) for name, (keys, _) in tables.items()}

    def rows(table: str, keys: Keys) -> Floats:
        order, own = ordered[table]
        out = initial(table, keys)
        if len(own):
            at = np.minimum(np.searchsorted(own, keys), len(own) - 1)
            has_row = own[at] == keys
            out[has_row] = tables[table][1][order[at[has_row]]]
        return out

    return rows


class Search:
    """An exact search. ``batch``: engaged examples, each with its item."""

    def __init__(
        self, features: FeatureSet, dim: int, catalogue: Catalogue, batch: Batch, lookup: Lookup
    ) -> None:
        """``dim``: of the vectors, the same for all models."""
        self._batch, self._lookup = batch, lookup
        alive = np.flatnonzero(catalogue.alive)
        if len(alive) > _MOST_ITEMS:  # keys are hashes: the lowest are a fair sample
            alive = alive[np.argsort(catalogue.keys[alive, 0])[:_MOST_ITEMS]]
        self._keys_N = catalogue.keys[alive, 0].copy()
        self._content_NV = _content(features, catalogue, alive, dim)
        self.known_E = np.zeros(len(batch), np.bool_)  # whether the item is searched
        self._item_E = np.zeros(len(batch), np.int64)
        if len(self._keys_N):
            order = np.argsort(self._keys_N)
            at = np.searchsorted(self._keys_N[order], batch.item_B)
            self._item_E = order[np.minimum(at, len(order) - 1)]
            self.known_E = self._keys_N[self._item_E] == batch.item_B

    def run(self, weights: Weights) -> SearchResult:
        """Searches with one model, for the examples whose items are known (``known_E``)."""
        items_NV = self._content_NV + weights.rows("items", self._keys_N)
        users_EV = self._users(weights)
        hits, picked = np.zeros(len(users_EV), np.bool_), np.zeros(len(items_NV), np.int64)
        for start in range(0, len(users_EV), _TOGETHER):
            part = slice(start, start + _TOGETHER)
            scores = users_EV[part] @ items_NV.T
            own = np.take_along_axis(scores, self._item_E[part, None], 1)
            hits[part] = ((scores > own).sum(1) < BEST) & np.isfinite(scores).all(1)
            picked += np.bincount(_best(scores).ravel(), minlength=len(items_NV))
        share = np.sort(picked)[-PICKS:].sum() / max(1, picked.sum())
        return SearchResult(hits[self.known_E], float(share))

    def _users(self, weights: Weights) -> Floats:
        weights.model.write_dense(weights.dense)
        keys = self._lookup.keys
        users, items = (padded(weights.rows(name, keys[name])) for name in ("users", "items"))
        with torch.inference_mode():
            vectors = weights.model.user_vectors(self._batch, self._lookup, users, items)
            out: Floats = vectors.numpy()
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
