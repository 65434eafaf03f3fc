"""Examples as arrays: the sparse features as one jagged tensor, everything else dense.

The layout of the sparse part is that of torchrec's KeyedJaggedTensor: values slot by slot, within a slot
example by example, with a length for each. ``keys()``, ``values()`` and ``lengths()`` are its interface, so
that a KeyedJaggedTensor can stand in its place.

Legend: B batch, S slots, T history, H keys of an entry, O outcomes, F dense, U unique keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.features.feature_set import FeatureSet, RequestFeatures
from recsys.model.row_kernels import jag

Keys = NDArray[np.int64]
Floats = NDArray[np.float32]


class Jagged(Protocol):
    """What is used of a KeyedJaggedTensor."""

    def keys(self) -> list[str]: ...
    def values(self) -> Tensor: ...
    def lengths(self) -> Tensor: ...


@dataclass(frozen=True)
class Sparse:
    """A jagged tensor without torchrec, for the serving path and for tests."""

    slots: list[str]
    values_: Tensor
    lengths_: Tensor

    def keys(self) -> list[str]:
        return self.slots

    def values(self) -> Tensor:
        return self.values_

    def lengths(self) -> Tensor:
        return self.lengths_


@dataclass(frozen=True)
class Batch:
    """B examples, ready to be looked up: ``sparse`` holds keys; history_BTH keys, 0 where there is none.

    ``history_BTH`` and ``outcomes_BTO`` have one row where all examples are of one request.
    """

    sparse: Jagged
    user_B: Keys
    item_B: Keys
    item_groups_BG: Keys  # the keys that an item vector's content starts from
    history_BTH: Keys
    outcomes_BTO: Floats
    dense_BF: Floats

    def __len__(self) -> int:
        return len(self.item_B)


def batch_of(features: FeatureSet, requests: Sequence[RequestFeatures]) -> Batch:
    """One batch of all the items of the requests, in order: the user's part is repeated for each item."""
    if len(requests) == 1:
        return _of_one(features, requests[0])
    counts = [len(request.items_NI) for request in requests]
    user_BU = np.repeat(np.stack([r.user_U for r in requests]), counts, axis=0)
    items_BI = np.concatenate([r.items_NI for r in requests])
    history = np.repeat(np.stack([r.history_TH for r in requests]), counts, axis=0)
    outcomes = np.repeat(np.stack([r.outcomes_TO for r in requests]), counts, axis=0)
    dense = np.concatenate([r.dense_NF for r in requests])
    return assemble(features, user_BU, items_BI, history, outcomes, dense)


def _of_one(features: FeatureSet, request: RequestFeatures) -> Batch:
    return assemble(
        features,
        np.broadcast_to(request.user_U, (len(request.items_NI), len(request.user_U))),
        request.items_NI,
        request.history_TH[None],
        request.outcomes_TO[None],
        request.dense_NF,
    )


def assemble(
    features: FeatureSet,
    user_BU: Keys,
    items_BI: Keys,
    history_BTH: Keys,
    outcomes_BTO: Floats,
    dense_BF: Floats,
) -> Batch:
    """A batch from arrays; the two of the history may have one row for all."""
    size, slots = len(items_BI), [*features.user_slots, *features.item_slots]
    values = np.empty(user_BU.size + items_BI.size, np.int64)
    lengths, count = np.empty((len(slots), size), np.int64), 0
    for matrix, some, first in (
        (user_BU, features.user_slots, 0),
        (items_BI, features.item_slots, len(features.user_slots)),
    ):
        starts = np.array([slot.start for slot in some], np.int64)
        stops = np.array([slot.stop for slot in some], np.int64)
        own = lengths[first : first + len(some)].reshape(-1)
        count = jag(np.ascontiguousarray(matrix, np.int64), starts, stops, values, own, count)
    sparse = Sparse(
        [slot.name for slot in slots],
        torch.from_numpy(values[:count]),
        torch.from_numpy(lengths.reshape(-1)),
    )
    return Batch(
        sparse,
        user_BU[:, 0],
        items_BI[:, 0],
        items_BI[:, features.group_columns()],
        history_BTH,
        outcomes_BTO,
        dense_BF,
    )
