"""Floor of an answer: what it must read and multiply, in plain numpy, without any logic around it.

As many random rows of the same arrays as an answer reads, the vectors of as many lists as its search probes,
and products of the network's shapes. No id is looked up, nothing is decayed, ordered, drawn or logged.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from torch import nn

from recsys.model.ranker import Ranker
from serving.index.ivf_index import IvfIndex
from serving.replica.replica import Replica


def floor_of(replica: Replica, candidates: int, seed: int) -> Callable[[], None]:
    """A function that does the work of one answer."""
    draw, index = np.random.default_rng(seed), replica.index
    assert isinstance(replica.model.ranker, Ranker), "the built-in ranker has these shapes"
    keys, vectors, counters = replica.catalogue.keys, index.vectors, replica.counters.arrays[1]
    rows = replica.rows["features"].export()[1]
    probed = len(vectors)
    if isinstance(index, IvfIndex):
        probed = len(vectors) * index.probes // index.lists.centroids.count
    layers = [layer for layer in replica.model.ranker.layers if isinstance(layer, nn.Linear)]
    widths = [layers[0].in_features, *(layer.out_features for layer in layers)]
    weights = [np.ones(shape, np.float32) for shape in pairwise(widths)]
    entities = len(replica.features.entities)
    history = replica.features.history_length * replica.features.history_keys

    def answer() -> None:
        items = draw.integers(0, len(keys), candidates)
        start = int(draw.integers(0, len(vectors) - probed + 1))
        vectors[start : start + probed] @ vectors[items[0]]
        rows[draw.integers(0, len(rows), candidates * keys[items].shape[1] + history)]
        counters[draw.integers(0, len(counters), candidates * entities)]
        numbers = np.ones((candidates, widths[0]), np.float32)
        for weight in weights:
            numbers = numbers @ weight

    return answer
