"""Items that a viewer chose from where the sources didn't make the list: a sample of their candidates."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from recsys.events.event_types import Choice
from recsys.events.hashed_random import draws
from recsys.events.hashing import key_of, uniform
from serving.query import Query
from serving.query_features import QueryFeatures

_SHARE: Final = 0.125  # of the lists of others whose choices are looked at
_SEED: Final = 0xC401
_OTHERS: Final = 16  # candidates that a choice looks at


def is_looked_at(request_id: str, share: float = _SHARE) -> bool:
    """Whether a list that the sources didn't make tells what its viewer chose from: a share of them, by hash,
    since retrieval takes milliseconds."""
    return uniform(_SEED, request_id, 0) < share


def choice_among(
    features: QueryFeatures, query: Query, indices: NDArray[np.int64], listed: NDArray[np.int64]
) -> Choice | None:
    """The choice of a listed item among the candidates of the sources; None if they had no others."""
    others = indices[~np.isin(indices, listed)]
    if not len(others):
        return None
    seed = key_of("choice", query.request_id) & 0xFFFFFFFF
    sample = others[np.argsort(draws(seed, others))[:_OTHERS]]
    others_KF, each = features.of(query, sample).dense_NF, len(others) / len(sample)
    standing_N = np.isin(listed, indices).astype(np.float32)
    return Choice(standing_N.tobytes(), others_KF.tobytes(), each)
