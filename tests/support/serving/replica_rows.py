"""Rows of a small replica."""

import numpy as np

from parameter_server.publish.deltas import Changed, StepDelta
from recsys.events.hashing import key_of
from tests.support.serving.replica_harness import config

DIM = config().model.vector_dim


def row_of(item_id: str, value: float, step: int) -> StepDelta:
    keys = np.array([key_of("item", item_id)])
    changed = Changed(keys, np.full((1, DIM), value, np.float32), np.empty(0, np.int64))
    return StepDelta(step, 0, {"items": changed}, None, {})
