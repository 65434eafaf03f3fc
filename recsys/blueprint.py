"""What every process of a system agrees on: the feature set that is logged, and the model made for it.

The feature set is decided once, when a state folder is first used, and written there: a folder that holds a
log of one feature set refuses another.
"""

from pathlib import Path

import msgspec

from recsys.config import Config, ModelConfig
from recsys.feature_builder import FeatureBuilder
from recsys.features import FeatureSet
from recsys.model import Model
from recsys.schema import CATEGORICAL, NUMERIC, Schema

FILE = "feature_set.json"

# What the simulated world and the feed's own items have.
FEED_SCHEMA = Schema(
    item=(
        ("author", CATEGORICAL),
        ("duration_ms", NUMERIC),
        ("tags", CATEGORICAL),
        ("topic", CATEGORICAL),
    ),
    user=(("age_band", CATEGORICAL), ("country", CATEGORICAL)),
    context=(("surface", CATEGORICAL),),
    groups=("author", "tags"),
)


def feature_set(config: Config) -> FeatureSet:
    """The feature set of a state folder; that of the feed where none was decided yet."""
    path = Path(config.state) / FILE
    if path.exists():
        return msgspec.json.decode(path.read_bytes(), type=FeatureSet)
    return FeatureSet(FEED_SCHEMA, config.model.features, config.sessions.history)


def decide(config: Config, features: FeatureSet) -> None:
    """Writes the feature set of a state folder; raises ValueError where another was decided before."""
    path = Path(config.state) / FILE
    if path.exists() and feature_set(config).digest != features.digest:
        raise ValueError(
            f"{path} holds feature set {feature_set(config).digest}, expected {features.digest}: its log was "
            "made with other features; use another state folder (--state)"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(features)))


def build_model(features: FeatureSet, config: ModelConfig) -> Model:
    """The model with its initial dense parameters, the same wherever it is built."""
    return Model(features, config, FeatureBuilder(features).dense_width)
