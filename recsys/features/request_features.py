"""Features of one request, and as an impression carries them.

Legend: N items of a request, U user columns, I item columns, T history, H keys and O outcomes of one entry,
F dense.
"""

from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from recsys.events.event_types import FeatureBlock, Impression
from recsys.features.feature_set import FeatureSet, Floats, Keys


@dataclass(frozen=True)
class RequestFeatures:
    """Features of one request: user_U, items_NI, history_TH, outcomes_TO, dense_NF."""

    feature_set: str
    user_U: Keys
    items_NI: Keys
    history_TH: Keys
    outcomes_TO: Floats
    dense_NF: Floats

    def rows(self, chosen: list[int] | Keys) -> "RequestFeatures":
        """The features of some of the items, in that order."""
        return replace(self, items_NI=self.items_NI[chosen], dense_NF=self.dense_NF[chosen])

    def block(self) -> FeatureBlock:
        """The features as written into the impression."""
        return FeatureBlock(
            feature_set=self.feature_set, user_keys=self.user_U.tobytes(),
            item_keys=self.items_NI.tobytes(), history=self.history_TH.tobytes(),
            outcomes=self.outcomes_TO.tobytes(), dense=self.dense_NF.tobytes(),
        )  # fmt: skip


class UnknownFeatureSet(ValueError):
    """A model was given features of another set."""


def read_block(block: FeatureBlock, features: FeatureSet) -> RequestFeatures:
    """The arrays of an impression's features; raises UnknownFeatureSet for another set."""
    if block.feature_set != features.digest:
        raise UnknownFeatureSet(
            f"feature set is {block.feature_set!r}, expected {features.digest!r}: "
            "the model must be trained on, and serve, the set that was logged"
        )
    items = _array(block.item_keys, np.int64).reshape(-1, features.item_columns)
    dense = _array(block.dense, np.float32)
    return RequestFeatures(
        block.feature_set,
        _array(block.user_keys, np.int64),
        items,
        _array(block.history, np.int64).reshape(-1, features.history_keys),
        _array(block.outcomes, np.float32).reshape(-1, features.outcomes),
        dense.reshape(len(items), dense.size // max(1, len(items))),
    )


def item_block(block: FeatureBlock, index: int, items: int) -> FeatureBlock:
    """The features of one of a block's ``items`` items, without reading the rest."""
    keys, dense = len(block.item_keys) // items, len(block.dense) // items
    return msgspec.structs.replace(
        block,
        item_keys=block.item_keys[index * keys : (index + 1) * keys],
        dense=block.dense[index * dense : (index + 1) * dense],
    )


def item_predictions(impression: Impression, index: int) -> bytes:
    """The ranker's predictions of one item when it was served, float32 (L,); empty without a ranker."""
    width = len(impression.predicted) // max(1, len(impression.items))
    return impression.predicted[index * width : (index + 1) * width]


def _array(data: bytes, kind: type[Any]) -> NDArray[Any]:
    """A writable copy, as torch expects."""
    return np.frombuffer(bytearray(data), kind)
