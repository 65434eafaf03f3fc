"""The items nearest to a query, of one shard and of all: by product, of equals by key.

Which index a shard has changes nothing but what is looked at: a flat one has all of its items looked at, one
of lists those in the nearest lists. ``Overlay`` holds the vectors of items that have changed since the
version that is asked for. They are looked at where they would have been found then: so what is found is a
function of the vectors of that version and of the centroids, to the last bit, whoever is asked and whenever.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys.arrays.bitmap import Bitmap
from serving.index import list_kernels
from serving.index.item_index import ItemIndex
from serving.index.ivf_index import IvfIndex

Keys = NDArray[np.int64]
Vectors = NDArray[np.float32]
Found = tuple[Keys, Vectors]  # keys and products, best first


@dataclass(frozen=True)
class Overlay:
    """Items by index (M,), with their keys and the vectors (M, V) that stand in for those in the index."""

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
) -> Found:  # fmt: skip
    """The k wanted items of one index with the largest products. ``keys_N``: of its items. No item of the
    overlay is in ``wanted``; all of them may be found. ``rough``: as in ``ItemIndex.search``."""
    query = np.ascontiguousarray(query_V, np.float32)
    k = min(k, wanted.count + len(overlay))
    if k <= 0:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    beside = np.empty(len(overlay), np.float32)
    list_kernels.products(overlay.vectors_MV, query, beside)
    if isinstance(index, IvfIndex):
        return _in_lists(index, keys_N, query, k, wanted, overlay, beside, index.probes_for(rough))
    best, keys = np.empty(k, np.float32), np.empty(k, np.int64)
    found = list_kernels.scan_all(
        np.ascontiguousarray(index.vectors), keys_N, query, wanted.bits, best, keys
    )
    sound = beside > -np.inf
    return merged([(keys[:found], best[:found]), (overlay.keys[sound], beside[sound])], k)


def _in_lists(
    index: IvfIndex, keys_N: Keys, query: Vectors, k: int, wanted: Bitmap, overlay: Overlay,
    beside: Vectors, probes: int,
) -> Found:  # fmt: skip
    """As ``IvfIndex.search``: through as many lists as it takes to find k. Among equals the item that came
    first is kept, as everywhere in lists."""
    lists = index.lists
    while True:
        at, best = lists.search(index.vectors, query, k, wanted, probes)
        last = best[-1] if len(best) == k else -np.inf
        inside = np.flatnonzero(
            (beside >= last) & (beside > -np.inf)
        )  # of few the list is looked for
        its_lists = lists.centroids.assign(overlay.vectors_MV[inside])
        inside = inside[np.isin(its_lists, lists.centroids.nearest(query, probes))]
        at = np.concatenate([at, overlay.indices[inside]])
        keys = np.concatenate([keys_N[at[: len(best)]], overlay.keys[inside]])
        best = np.concatenate([best, beside[inside]])
        if len(at) >= k or probes >= lists.centroids.count:
            first = np.lexsort((at, -best))[:k]
            return merged([(keys[first], best[first])], k)
        probes *= 2


def merged(parts: Sequence[Found], k: int) -> Found:
    """The k best of several answers: by product, of equals by key, so that nobody sees who gave them."""
    keys = np.concatenate([keys for keys, _ in parts])
    best = np.concatenate([products for _, products in parts])
    first = np.lexsort((keys, -best))[:k]
    return keys[first], best[first]
