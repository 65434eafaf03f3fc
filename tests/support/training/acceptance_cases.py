"""RowFormEvidence and features of an acceptance decision."""

from recsys.config.system_config import ModelConfig, digest
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import FEED_SCHEMA
from runtime.supervision.acceptance_file import RowFormEvidence, input_digest

FEATURES = FeatureSet(FEED_SCHEMA, "all", 20)

EVIDENCE = RowFormEvidence(
    features=input_digest(FEATURES),
    model=digest(ModelConfig()),
    data="kuairand",
    rows=1000,
    users=50,
    auc={"float32": 0.76, "fp16": 0.76, "int8": 0.7598},
    cost=0.0002,
    low=-0.0001,
    high=0.0005,
    bytes_a_row={"float32": 102.0, "fp16": 102.0, "int8": 55.0},
    lookup_us={"float32": 100.0, "int8": 50.0},
)
