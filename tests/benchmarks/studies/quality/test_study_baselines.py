"""`recsys study baselines`: every recommender is judged on the same rows, and none sees a label early."""

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.studies.quality import study_baselines
from benchmarks.studies.quality.simulated_world_log import WorldLog
from benchmarks.studies.quality.study_baselines import NightlyTrees, measure_baselines
from benchmarks.study import study
from recsys.events.event_types import FeatureBlock
from recsys.features.feature_set import RequestFeatures
from replay.judging.answers import OURS
from replay.replay_run import ReplayOptions


def small() -> WorldLog:
    return WorldLog(1, hours=30, users=12, items=30, requests_per_s=0.0015)


@pytest.mark.slow
def test_all_are_judged_on_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measure_baselines(small(), ReplayOptions(step_examples=24))
    names = list(found["ranking"])
    assert names[0] == OURS and len(names) > 1
    assert {measured["rows"] for measured in found["ranking"].values()} == {found["rows"]}
    assert found["rows"] > 100 and found["ranking"][OURS]["lists"]["requests"] > 10
    assert found["retrieval"]["targets"] > 10
    monkeypatch.setattr(study_baselines, "open_dataset", lambda folder, app, path: small())
    monkeypatch.setattr(study_baselines, "with_bar", iter)
    result = CliRunner().invoke(study, ["baselines", "folder", "--retrieval", "0.2"])
    assert result.exit_code == 0, result.output
    assert OURS in result.output and "popularity, 24 h" in result.output


def block(x: float) -> FeatureBlock:
    return FeatureBlock(feature_set="", dense=np.array([x, 0.0], np.float32).tobytes())


def request(*x: float) -> RequestFeatures:
    dense = np.array([[value, 0.0] for value in x], np.float32)
    keys, floats = np.zeros((0, 0), np.int64), np.zeros((0, 0), np.float32)
    return RequestFeatures("", keys[0:0].reshape(-1), keys, keys, floats, dense)


@pytest.mark.slow
def test_trees_are_grown_at_midnight_only() -> None:
    pytest.importorskip("lightgbm")
    trees = NightlyTrees(0.0)
    trees.move(0)
    for n in range(2000):
        trees.learn(block(n % 2), n % 2 == 1)
    trees.move(86_399_999)
    assert trees.score(request(0.0, 1.0)) == pytest.approx([0.5, 0.5])
    trees.move(86_400_000)
    low, high = trees.score(request(0.0, 1.0))
    assert low < 0.1 < 0.9 < high
