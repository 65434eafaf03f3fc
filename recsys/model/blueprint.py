"""The model that every process of a system builds for its feature set."""

from recsys.config.system_config import ModelConfig
from recsys.features.feature_builder import FeatureBuilder
from recsys.features.feature_set import FeatureSet
from recsys.model.model import Model


def build_model(features: FeatureSet, config: ModelConfig) -> Model:
    """The model with its initial dense parameters, the same wherever it is built."""
    return Model(features, config, FeatureBuilder(features).dense_width)
