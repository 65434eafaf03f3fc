"""Batches from whole requests, for tests of the model's forward."""

from collections.abc import Sequence

import numpy as np

from recsys.features.feature_set import FeatureSet
from recsys.features.request_features import RequestFeatures
from recsys.model.batch import Batch, assemble


def batch_of(features: FeatureSet, requests: Sequence[RequestFeatures]) -> Batch:
    """All items of the requests, in order; the user's part is repeated per item, or shared by one request."""
    if len(requests) == 1:
        [one] = requests
        user = np.broadcast_to(one.user_U, (len(one.items_NI), len(one.user_U)))
        history, outcomes = one.history_TH[None], one.outcomes_TO[None]
        return assemble(features, user, one.items_NI, history, outcomes, one.dense_NF)
    counts = [len(request.items_NI) for request in requests]
    user_BU = np.repeat(np.stack([r.user_U for r in requests]), counts, axis=0)
    items_BI = np.concatenate([r.items_NI for r in requests])
    history_BTH = np.repeat(np.stack([r.history_TH for r in requests]), counts, axis=0)
    outcomes_BTO = np.repeat(np.stack([r.outcomes_TO for r in requests]), counts, axis=0)
    dense_BF = np.concatenate([r.dense_NF for r in requests])
    return assemble(features, user_BU, items_BI, history_BTH, outcomes_BTO, dense_BF)
