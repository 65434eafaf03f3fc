from dataclasses import replace
from pathlib import Path

import pytest

from recsys.blueprint import FEED_SCHEMA, FILE, build_model, decide, feature_set
from recsys.config import Config, ModelConfig
from recsys.features import FeatureSet
from tests.toy_feed import FEATURES, toy_config


def test_a_state_folder_has_the_feeds_features_until_others_are_decided(tmp_path: Path) -> None:
    config = Config(state=str(tmp_path / "state"), model=ModelConfig(features="ids"))
    assert feature_set(config) == FeatureSet(FEED_SCHEMA, "ids", config.sessions.history)
    decide(config, FEATURES)
    assert feature_set(config) == FEATURES and feature_set(config).digest == FEATURES.digest
    decide(config, FEATURES)  # again is as once


def test_a_folder_whose_log_has_other_features_is_refused_and_kept(tmp_path: Path) -> None:
    config = Config(state=str(tmp_path))
    decide(config, FEATURES)
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(
        ValueError, match=f"holds feature set {FEATURES.digest}.*another state folder"
    ):
        decide(config, replace(FEATURES, history=9))
    assert (tmp_path / FILE).read_bytes() == before


def test_a_model_starts_the_same_wherever_it_is_built() -> None:
    config = toy_config().model
    one, other = build_model(FEATURES, config), build_model(FEATURES, config)
    assert one.read_dense().tobytes() == other.read_dense().tobytes()
    assert one.ranker.shape.dense > 0
