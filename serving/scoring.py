"""Probabilities of every engagement for candidates, from the rows of one version.

An item's score doesn't depend on what it is scored with. A matrix product takes another kernel for the rows
that are left over at the end, whose sums differ in the last bit, so a list is filled up to whole blocks of
rows; element by element, only operations are used that treat the last of an array like the others.
``tests/test_scoring.py`` holds that a list of 1 and a list of 300 agree bit for bit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from recsys.batch import batch_of
from recsys.features import RequestFeatures
from recsys.model import Model, lookup_of, padded
from serving.row_store import RowStore

ROWS: Final = 16  # of a block
Floats = NDArray[np.float32]


def probabilities(
    model: Model, rows: Mapping[str, RowStore], requests: Sequence[RequestFeatures]
) -> Floats:
    """(N, L) over all items of the requests, in order: each label, then the fraction of watch time."""
    total = sum(len(request.items_NI) for request in requests)
    if total == 0:
        return np.zeros((0, model.ranker.shape.outputs), np.float32)
    batch = batch_of(model.features, _filled(requests, -total % ROWS))
    lookup = lookup_of(batch)
    with torch.inference_mode():
        table = padded(rows["features"].lookup(lookup.keys["features"]))
        logits: Floats = model.rank(batch, lookup, table).numpy()[:total]
    return _sigmoid(logits)


def _filled(requests: Sequence[RequestFeatures], missing: int) -> list[RequestFeatures]:
    """The requests with ``missing`` rows more at the end: repeats, whose scores nobody reads."""
    some = [request for request in requests if len(request.items_NI)]
    if missing:
        last = some[-1]
        some[-1] = last.rows([*range(len(last.items_NI)), *[0] * missing])
    return some


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
