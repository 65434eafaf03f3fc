"""Counts and finds the examples of a lane that use each of its rows."""

# B examples, U unique keys of a table, S slots, T history, H keys of an entry

import numpy as np
from numpy.typing import NDArray

from recsys.model.batch import Batch
from recsys.model.model import Lookup

Flags = NDArray[np.bool_]


def examples_per_row(lookup: Lookup) -> dict[str, NDArray[np.int32]]:
    """Number of examples that have each key of a lane as a feature (U,), at least 1, for row admission."""
    indices = {"features": lookup.slot_index, "items": lookup.item_index, "users": lookup.user_index}
    counts = {}
    for table, keys in lookup.keys.items():
        occurrences = np.bincount(indices[table].numpy(), minlength=len(keys) + 1)[: len(keys)]
        counts[table] = np.maximum(occurrences, 1).astype(np.int32)
    return counts


def rows_in_examples(batch: Batch, lookup: Lookup, some_B: Flags) -> dict[str, Flags]:
    """Whether each key of a lane (U,) occurs in the flagged examples, as a feature or in their histories."""
    size = len(batch)
    lengths = batch.sparse.lengths().numpy()  # slot by slot, within a slot example by example
    example_at = np.repeat(np.arange(len(lengths)) % size, lengths)
    history_BX = lookup.history_index.numpy().reshape(len(lookup.history_index), -1)
    history_BX = np.broadcast_to(history_BX, (size, history_BX.shape[1]))
    items_BT = lookup.history_item_index.numpy()
    items_BT = np.broadcast_to(items_BT, (size, items_BT.shape[1]))
    places = {
        "features": [lookup.slot_index.numpy()[some_B[example_at]], history_BX[some_B].ravel()],
        "items": [lookup.item_index.numpy()[some_B], items_BT[some_B].ravel()],
        "users": [lookup.user_index.numpy()[some_B]],
    }
    is_used = {}
    for table, keys in lookup.keys.items():
        flags = np.zeros(len(keys) + 1, np.bool_)  # the last one: a place without a key
        flags[np.concatenate(places[table])] = True
        is_used[table] = flags[:-1]
    return is_used
