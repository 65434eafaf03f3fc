"""Centroids by FAISS k-means: on one thread, with a fixed seed, of a deterministic sample."""

from typing import Final

import faiss
import numpy as np
from numpy.typing import NDArray

from serving.index.exact_order import Vectors
from serving.index.inverted_lists import Centroids

_SEED: Final = 17
_ROUNDS: Final = 6  # more rounds move few vectors to another list, and don't change recall
_EACH: Final = 48  # sampled vectors per centroid


def lists_for(items: int) -> int:
    """Number of lists: searching the centroids and searching the probed lists cost about the same."""
    return max(1, min(1 << max(2, round(float(np.log2(4 * np.sqrt(items))))), items // 8))


def sample_of(members: NDArray[np.int64], lists: int) -> NDArray[np.int64]:
    """Training sample for the centroids: members evenly spread over their numbers."""
    size = min(len(members), lists * _EACH)
    return members[np.arange(size) * len(members) // size]


def train(sample_NV: Vectors, lists: int) -> Centroids:
    """Trains centroids. Vectors with non-finite numbers are left out."""
    faiss.omp_set_num_threads(1)  # of this thread alone
    finite = sample_NV[np.isfinite(sample_NV).all(1)]
    if len(finite) < lists:
        padding = np.zeros((lists - len(finite), sample_NV.shape[1]), np.float32)
        finite = np.concatenate([finite, padding])
    means = faiss.Kmeans(
        finite.shape[1], lists, niter=_ROUNDS, seed=_SEED,
        min_points_per_centroid=1, max_points_per_centroid=len(finite),
    )  # fmt: skip
    means.train(np.ascontiguousarray(finite))
    return Centroids(means.centroids.reshape(lists, -1))
