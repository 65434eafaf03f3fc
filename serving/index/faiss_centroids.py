"""Centroids by k-means: FAISS's, on one thread, from a fixed seed, of a sample that is the same each time."""

from typing import Final

import faiss
import numpy as np
from numpy.typing import NDArray

from serving.index.inverted_lists import Centroids, Vectors

_SEED: Final = 17
_ROUNDS: Final = 6  # more move few vectors to another list, and recall not at all
_EACH: Final = 48  # vectors of the sample for each centroid


def lists_for(items: int) -> int:
    """How many lists: looking through the centroids and through the lists' share costs about the same."""
    return max(1, min(1 << max(2, round(float(np.log2(4 * np.sqrt(items))))), items // 8))


def sample_of(members: NDArray[np.int64], lists: int) -> NDArray[np.int64]:
    """Those of the members that centroids are made from: evenly spread over their numbers."""
    size = min(len(members), lists * _EACH)
    return members[np.arange(size) * len(members) // size]


def train(sample_NV: Vectors, lists: int) -> Centroids:
    """Raises nothing for numbers that aren't numbers: such vectors are left out."""
    faiss.omp_set_num_threads(1)  # of this thread alone
    sound = sample_NV[np.isfinite(sample_NV).all(1)]
    if len(sound) < lists:
        sound = np.concatenate(
            [sound, np.zeros((lists - len(sound), sample_NV.shape[1]), np.float32)]
        )
    means = faiss.Kmeans(
        sound.shape[1], lists, niter=_ROUNDS, seed=_SEED,
        min_points_per_centroid=1, max_points_per_centroid=len(sound),
    )  # fmt: skip
    means.train(np.ascontiguousarray(sound))
    return Centroids(neighbours(means.centroids.reshape(lists, -1)))


def neighbours(centroids_CV: Vectors) -> Vectors:
    """The centroids in an order in which near ones mostly stand side by side: halved again and again across
    the direction in which they differ most. What a search looks through then lies together in memory."""
    order, parts = list[int](), [np.arange(len(centroids_CV))]
    while parts:
        its = parts.pop()
        if len(its) <= 2:
            order.extend(its.tolist())
            continue
        around = centroids_CV[its] - centroids_CV[its].mean(0)
        longest = np.linalg.eigh(around.T @ around)[1][:, -1]
        halves = np.array_split(its[np.argsort(around @ longest, kind="stable")], 2)
        parts.extend(reversed(halves))
    return centroids_CV[np.array(order, np.int64)]
