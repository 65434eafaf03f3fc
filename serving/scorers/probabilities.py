"""Probabilities of every engagement for candidates, from the rows of one version.

An item's score doesn't depend on the items that it is scored with. A matrix product computes left-over rows
at the end with another kernel, whose sums differ in the last bit, so lists are padded to whole blocks of
rows; all else is computed by independent lanes (``recsys.model.tile_kernels``) or element by element with
operations that treat the last elements of an array like the others. A test
(``tests/serving/scorers/test_probabilities.py``) checks that a list of 1 and a list of 300 agree bit for bit.
"""

from collections.abc import Mapping, Sequence
from typing import TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray

from recsys.features.request_features import RequestFeatures
from recsys.model.list_ranker import is_compiled, list_logits, lists_of
from recsys.model.model import Model, with_missing_row
from recsys.model.retrieval_vectors import content_vectors
from serving.replica.row_store import RowStore

Floats = NDArray[np.float32]


def probabilities(model: Model, rows: Mapping[str, RowStore], requests: Sequence[RequestFeatures]) -> Floats:
    """(N, L) over all items of the requests, in order: each label, then the fraction of watch time."""
    filled = [request for request in requests if len(request.items_NI)]
    if not filled:
        return np.zeros((0, model.ranker.shape.outputs), np.float32)
    if len(filled) > 1 and not is_compiled(model):
        return np.concatenate([probabilities(model, rows, [request]) for request in filled])
    lists = lists_of(filled)
    with torch.inference_mode():
        table = with_missing_row(rows["features"].lookup(lists.keys)).numpy()
        return _sigmoid(list_logits(model, lists, table))


def has_numbers(predictions_NL: Floats | None) -> TypeGuard[Floats]:
    """Whether any item has predictions that are numbers."""
    return predictions_NL is not None and not np.isnan(predictions_NL).any(1).all()


def _sigmoid(logits: Floats) -> Floats:
    """By numpy: torch uses other instructions for the last elements of an array."""
    with np.errstate(over="ignore"):
        out: Floats = np.float32(1.0) / (np.float32(1.0) + np.exp(-logits))
    return out


def user_vector(model: Model, rows: Mapping[str, RowStore], request: RequestFeatures) -> Floats:
    """The user tower's vector of a request (V,). Its items don't matter; there may be none.

    As ``UserSide`` for one user, by numpy: a batch of one costs torch five times as much. Products are summed
    element by element, so that no sum depends on the alignment of an array.
    """
    side, start = model.user_side, model.features.slot("user").start
    own_V = rows["users"].lookup(request.user_U[start : start + 1])[0]
    if not request.user_U[start]:  # nobody has no row
        own_V = np.zeros_like(own_V)
    past_TV = rows["items"].lookup(np.ascontiguousarray(request.history_TH[:, 0]))
    past_TV = past_TV + content_vectors(request.history_TH[:, 1:], len(own_V))
    filled_T = (request.outcomes_TO[:, -1] > 0).astype(np.float32)
    liked_T = filled_T * request.outcomes_TO[:, 0]
    liked_V = _projected(_weighted_mean(past_TV, liked_T), side.liked)
    passed_V = _projected(_weighted_mean(past_TV, filled_T - liked_T), side.seen)
    out: Floats = own_V + liked_V + passed_V + side.start.detach().numpy()
    out[-1] = 1.0
    return out


def _weighted_mean(past_TV: Floats, weight_T: Floats) -> Floats:
    mean_V: Floats = (past_TV * weight_T[:, None]).sum(0) / max(weight_T.sum(), np.float32(1.0))
    return mean_V


def _projected(vector_V: Floats, by_VV: torch.Tensor) -> Floats:
    out_V: Floats = (vector_V[:, None] * by_VV.detach().numpy()).sum(0)
    return out_V
