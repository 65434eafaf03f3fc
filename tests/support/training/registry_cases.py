"""A small shard and its provenance, for a registry of candidates."""

import numpy as np

from parameter_server.shard.lanes import LaneGradients, RowGradients
from parameter_server.shard.shard import Shard, ShardSpec
from recsys.config.system_config import ModelConfig, digest, tables_of
from tests.support.training.small_feed import FEATURES, START_MS
from training.candidates.registry import Provenance, plain_config

MODEL = ModelConfig(dim=4, vector_dim=4, hidden=(8,))

SPEC = ShardSpec(tables_of(MODEL), lanes=1)


def shard() -> Shard:
    its = Shard(SPEC, np.arange(5, dtype=np.float32))
    for step in (1, 2):
        keys = np.array([3, step + 10], np.int64)
        rows = RowGradients(keys, np.ones((2, 5), np.float32), np.ones(2, np.int32))
        its.learn(step, START_MS, [LaneGradients(0, {"features": rows}, np.ones(5, np.float32))])
    return its


def provenance(name: str = "cand-1", **changes: object) -> Provenance:
    values = dict(
        name=name, kind="offline", feature_set=FEATURES.digest, model=digest(MODEL),
        config=plain_config(MODEL), code="test", made_ms=START_MS, from_ms=START_MS - 10,
        until_ms=START_MS, log_id="log-a", offsets={0: 7, 1: 9}, metrics={"last_day.auc": 0.7},
    )  # fmt: skip
    return Provenance(**(values | changes))  # type: ignore[arg-type]
