"""Which examples of a lane stand behind each of its rows."""

# B examples, U unique keys of a table, S slots, T history, H keys of an entry

import numpy as np
from numpy.typing import NDArray

from recsys.model.batch import Batch
from recsys.model.model import Lookup

Flags = NDArray[np.bool_]


def examples_behind(lookup: Lookup) -> dict[str, NDArray[np.int32]]:
    """How often each key of a lane occurs as a feature of its examples (U,): what admission counts.

    A key that occurs in histories alone counts once.
    """
    index = {
        "features": lookup.slot_index,
        "items": lookup.item_index,
        "users": lookup.user_index,
    }
    counts = {}
    for table, keys in lookup.keys.items():
        seen = np.bincount(index[table].numpy(), minlength=len(keys) + 1)[: len(keys)]
        counts[table] = np.maximum(seen, 1).astype(np.int32)
    return counts


def rows_of_some(batch: Batch, lookup: Lookup, some_B: Flags) -> dict[str, Flags]:
    """Whether each key of a lane (U,) occurs in some of its examples, as a feature or in their histories."""
    size = len(batch)
    lengths = batch.sparse.lengths().numpy()  # slot by slot, within a slot example by example
    example_at = np.repeat(np.arange(len(lengths)) % size, lengths)
    history_BX = lookup.history_index.numpy().reshape(len(lookup.history_index), -1)
    history_BX = np.broadcast_to(history_BX, (size, history_BX.shape[1]))
    past_BT = np.broadcast_to(lookup.past_index.numpy(), (size, lookup.past_index.shape[1]))
    places = {
        "features": [lookup.slot_index.numpy()[some_B[example_at]], history_BX[some_B].ravel()],
        "items": [lookup.item_index.numpy()[some_B], past_BT[some_B].ravel()],
        "users": [lookup.user_index.numpy()[some_B]],
    }
    found = {}
    for table, keys in lookup.keys.items():
        there = np.zeros(len(keys) + 1, np.bool_)  # the last: a place without a key
        there[np.concatenate(places[table])] = True
        found[table] = there[:-1]
    return found
