"""The items nearest to a query, of one shard and of all: by product, of equals by key.

A flat index compares all items, one with lists those in the nearest lists. ``Overlay`` holds the vectors of
items that have changed since the requested version; they are compared where they would have been found at
that version. So hits are a function of the vectors of the version and of the centroids, to the last bit,
whichever replica asks and whenever.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys.arrays.bitmap import Bitmap
from serving.index.exact_order import Hits, Vectors, best_of, products
from serving.index.item_index import ItemIndex
from serving.index.ivf_index import IvfIndex

Keys = NDArray[np.int64]


@dataclass(frozen=True)
class Overlay:
    """Items by index (M,), with keys and with vectors (M, V) that replace those in the index."""

    indices: Keys
    keys: Keys
    vectors_MV: Vectors

    @classmethod
    def none(cls, dim: int) -> "Overlay":
        return cls(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, dim), np.float32))

    def __len__(self) -> int:
        return len(self.indices)


def nearest(
    index: ItemIndex, keys_N: Keys, query_V: Vectors, k: int, wanted: Bitmap, overlay: Overlay,
    rough: bool = False,
) -> Hits:  # fmt: skip
    """The k wanted items of one index with the largest products. ``keys_N``: keys of its items. No item of
    the overlay is in ``wanted``; all of them may be found. ``rough``: as in ``ItemIndex.search``."""
    query = np.ascontiguousarray(query_V, np.float32)
    k = min(k, wanted.count + len(overlay))
    if k <= 0:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    changed_MV = np.ascontiguousarray(overlay.vectors_MV)
    overlay_products = products(changed_MV, np.arange(len(overlay)), query)
    if isinstance(index, IvfIndex):
        return _in_lists(index, keys_N, query, k, wanted, overlay, overlay_products, rough)
    vectors = np.ascontiguousarray(index.vectors)
    wanted_N = np.flatnonzero(wanted.mask()[: len(vectors)])
    indices, best = best_of(wanted_N, vectors, query, k, keys_N)
    finite = overlay_products > -np.inf
    overlay_hits = overlay.keys[finite], overlay_products[finite]
    return merge_hits([(keys_N[indices], best), overlay_hits], k)


def _in_lists(
    index: IvfIndex, keys_N: Keys, query: Vectors, k: int, wanted: Bitmap, overlay: Overlay,
    overlay_products: Vectors, rough: bool,
) -> Hits:  # fmt: skip
    """As ``IvfIndex.search``: probes as many lists as it takes to find k. Of equals, as in all lists, the
    item with the smaller number is kept."""
    lists, probes = index.lists, index.probes_for(rough)
    while True:
        indices, best = lists.search(index.vectors, query, k, wanted, probes)
        last = best[-1] if len(best) == k else -np.inf
        # Few are good enough to have their list looked up.
        inside = np.flatnonzero((overlay_products >= last) & (overlay_products > -np.inf))
        list_of = lists.centroids.assign(overlay.vectors_MV[inside])
        inside = inside[np.isin(list_of, lists.centroids.nearest(query, probes))]
        keys = np.concatenate([keys_N[indices], overlay.keys[inside]])
        indices = np.concatenate([indices, overlay.indices[inside]])
        best = np.concatenate([best, overlay_products[inside]])
        if len(indices) >= k or probes >= lists.centroids.count:
            first = np.lexsort((indices, -best))[:k]
            return merge_hits([(keys[first], best[first])], k)
        probes *= 2


def merge_hits(parts: Sequence[Hits], k: int) -> Hits:
    """The k best hits of several parts: by product, of equals by key, so the partition doesn't matter."""
    keys = np.concatenate([keys for keys, _ in parts])
    best = np.concatenate([products for _, products in parts])
    first = np.lexsort((keys, -best))[:k]
    return keys[first], best[first]
