import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from recsys.config.system_config import Config, ModelConfig
from recsys.features.families import moment
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import FEED_SCHEMA, FILE, feature_set, labels_of, write_feature_set
from tests.support.training.small_feed import FEATURES


def test_a_state_folder_has_the_feeds_features_until_others_are_decided(tmp_path: Path) -> None:
    config = Config(state=str(tmp_path / "state"), model=ModelConfig(features="ids"))
    assert feature_set(config) == FeatureSet(FEED_SCHEMA, "ids", config.sessions.history)
    write_feature_set(config, FEATURES)
    assert feature_set(config) == FEATURES and feature_set(config).digest == FEATURES.digest
    write_feature_set(config, FEATURES)  # again is as once
    newer = replace(FEATURES, schema=replace(FEATURES.schema, times=("since",)))
    write_feature_set(config, newer)  # of the same columns
    assert feature_set(config).schema.times == ("since",)
    assert newer.digest == FEATURES.digest and newer == FEATURES


def test_a_folder_whose_log_has_other_features_is_refused_and_kept(tmp_path: Path) -> None:
    config = Config(state=str(tmp_path))
    write_feature_set(config, FEATURES)
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(ValueError, match=f"holds feature set {FEATURES.digest}.*another state folder"):
        write_feature_set(config, replace(FEATURES, history=9))
    assert (tmp_path / FILE).read_bytes() == before


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"")
    with pytest.raises(ValueError, match=rf"{FILE} isn't a feature set.*new state folder"):
        feature_set(Config(state=str(tmp_path)))


@pytest.mark.parametrize("change", ["a column more", "another order", "written before there was a digest"])
def test_a_folder_from_before_columns_changed_is_refused(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, names = Config(state=str(tmp_path)), moment.MOMENT
    write_feature_set(config, FEATURES)
    if change == "a column more":
        monkeypatch.setattr(moment, "MOMENT", (*names, "weekday"))
    elif change == "another order":
        monkeypatch.setattr(moment, "MOMENT", names[::-1])
    else:
        (tmp_path / FILE).write_bytes(msgspec.json.encode(FEATURES))
    with pytest.raises(ValueError, match="expected [0-9a-f]{32}: .*Begin a new state folder"):
        feature_set(config)
    with pytest.raises(ValueError, match="read other columns"):
        write_feature_set(config, replace(FEATURES))


def test_who_asks_for_labels_needs_no_model(tmp_path: Path) -> None:
    write_feature_set(Config(state=str(tmp_path)), FEATURES)
    assert labels_of(Config(state=str(tmp_path))) == FEATURES.schema.labels
    code = "import sys, runtime.control_room.experiment_panel; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
