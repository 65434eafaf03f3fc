"""Examples as arrays: the sparse features as one jagged tensor, everything else dense.

The sparse part has the layout of torchrec's KeyedJaggedTensor: values slot by slot, within a slot example by
example, with a length for each. ``keys()``, ``values()`` and ``lengths()`` are its interface, so a
KeyedJaggedTensor can replace it.

Legend: B batch, S slots, T history, H keys of an entry, O outcomes, F dense, U unique keys.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys.features.feature_set import FeatureSet
from recsys.model.row_kernels import jag

Keys = NDArray[np.int64]
Floats = NDArray[np.float32]


class Jagged(Protocol):
    """Part of KeyedJaggedTensor's interface that the model uses."""

    def keys(self) -> list[str]: ...
    def values(self) -> Tensor: ...
    def lengths(self) -> Tensor: ...


@dataclass(frozen=True)
class Sparse:
    """A jagged tensor without torchrec, for serving and tests."""

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
    """B examples ready for lookup: ``sparse`` holds keys; history_BTH keys, 0 without an entry.

    ``history_BTH`` and ``outcomes_BTO`` have one row if all examples belong to one request.
    """

    sparse: Jagged
    user_B: Keys
    item_B: Keys
    item_groups_BG: Keys  # keys of the item's groups, from which its content vector is made
    history_BTH: Keys
    outcomes_BTO: Floats
    dense_BF: Floats

    def __len__(self) -> int:
        return len(self.item_B)


def assemble(
    features: FeatureSet, user_BU: Keys, items_BI: Keys, history_BTH: Keys, outcomes_BTO: Floats,
    dense_BF: Floats,
) -> Batch:  # fmt: skip
    """A batch from arrays; history and outcomes may have one row for all."""
    size, slots = len(items_BI), [*features.user_slots, *features.item_slots]
    values = np.empty(user_BU.size + items_BI.size, np.int64)
    lengths, count = np.empty((len(slots), size), np.int64), 0
    for matrix, matrix_slots, first in (
        (user_BU, features.user_slots, 0),
        (items_BI, features.item_slots, len(features.user_slots)),
    ):
        starts = np.array([slot.start for slot in matrix_slots], np.int64)
        stops = np.array([slot.stop for slot in matrix_slots], np.int64)
        own = lengths[first : first + len(matrix_slots)].reshape(-1)
        count = jag(np.ascontiguousarray(matrix, np.int64), starts, stops, values, own, count)
    sparse = Sparse(
        [slot.name for slot in slots], torch.from_numpy(values[:count]), torch.from_numpy(lengths.reshape(-1))
    )
    groups = items_BI[:, features.group_columns()]
    return Batch(sparse, user_BU[:, 0], items_BI[:, 0], groups, history_BTH, outcomes_BTO, dense_BF)
