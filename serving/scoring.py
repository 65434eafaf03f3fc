"""Probabilities of every engagement for candidates, from the rows of one version.

An item's score doesn't depend on what it is scored with. A matrix product takes another kernel for the rows
that are left over at the end, whose sums differ in the last bit, so lists are filled up to whole blocks of
rows; all else is done by lanes that know nothing of each other (``recsys.list_kernels``), or by operations
that treat the last element of an array like the others. ``tests/test_scoring.py`` holds that a list of 1 and
a list of 300 agree bit for bit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from recsys.batch import batch_of
from recsys.features import RequestFeatures
from recsys.list_ranker import lists_of, rank_lists
from recsys.model import Model, lookup_of, padded
from serving.row_store import RowStore

Floats = NDArray[np.float32]


def probabilities(
    model: Model, rows: Mapping[str, RowStore], requests: Sequence[RequestFeatures]
) -> Floats:
    """(N, L) over all items of the requests, in order: each label, then the fraction of watch time."""
    some = [request for request in requests if len(request.items_NI)]
    if not some:
        return np.zeros((0, model.ranker.shape.outputs), np.float32)
    lists = lists_of(some)
    with torch.inference_mode():
        table = padded(rows["features"].lookup(lists.keys)).numpy()
        return _sigmoid(rank_lists(model, lists, table))


def _sigmoid(logits: Floats) -> Floats:
    """By numpy: torch's takes other instructions for the last elements of an array."""
    with np.errstate(over="ignore"):
        out: Floats = np.float32(1.0) / (np.float32(1.0) + np.exp(-logits))
    return out


def user_vector(model: Model, rows: Mapping[str, RowStore], request: RequestFeatures) -> Floats:
    """The user side of a request (V,). Its items don't matter; there may be none."""
    items_NI = np.zeros((1, model.features.item_columns), np.int64)
    dense_NF = np.zeros((1, model.ranker.shape.dense), np.float32)
    alone = replace(request, items_NI=items_NI, dense_NF=dense_NF)
    batch = batch_of(model.features, [alone])
    lookup = lookup_of(batch)
    with torch.inference_mode():
        users = padded(rows["users"].lookup(lookup.keys["users"]))
        items = padded(rows["items"].lookup(lookup.keys["items"]))
        out: Floats = model.user_vectors(batch, lookup, users, items).numpy()[0]
    return out
