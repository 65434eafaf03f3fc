"""`recsys study quality`: others see what ours sees, in its order, and never an example before its score."""

import numpy as np
import pytest

from benchmarks.studies.quality.simulated_world_log import WorldLog
from benchmarks.studies.quality.study_linear import linear_learners
from benchmarks.studies.quality.study_quality import WHOLE, measure_quality, variants
from replay.replay_run import ReplayOptions, replay_data

pytestmark = pytest.mark.steady

OPTIONS = ReplayOptions(step_examples=24)


def small() -> WorldLog:
    return WorldLog(1, hours=30, users=12, items=30, requests_per_s=0.0015)


class Watcher:
    """Scores each item with the number of examples learned so far."""

    name = "watcher"

    def __init__(self) -> None:
        self.learned: list[bool] = []
        self.digests: set[str] = set()

    def move(self, now_ms):
        pass

    def score(self, request):
        self.digests.add(request.feature_set)
        return [len(self.learned) / 1e6] * len(request.items_NI)

    def learn(self, features, label):
        self.digests.add(features.feature_set)
        self.learned.append(label)


@pytest.mark.slow
def test_the_others_score_every_row_and_learn_every_example():
    watcher = Watcher()
    found = measure_quality(small(), OPTIONS, [WHOLE], learners=lambda features: [watcher])
    names = [row["name"] for row in found["rows"]]
    assert names == [WHOLE, "watcher"] and len(watcher.digests) == 1
    whole = replay_data(small(), OPTIONS)
    assert len(watcher.learned) == whole.counts["examples"] > 100
    assert found["rows"][0]["rows"] == found["rows"][1]["rows"] > 0
    assert found["rows"][1]["to_whole"]["low"] <= found["rows"][1]["to_whole"]["high"]


@pytest.mark.slow
def test_a_variant_is_a_replay_of_its_own():
    found = measure_quality(small(), OPTIONS, ["ids"], learners=lambda features: [])
    assert [row["name"] for row in found["rows"]] == [WHOLE, "ids"]
    assert found["rows"][0]["auc"] != found["rows"][1]["auc"]


def test_a_variant_that_isn_t_there_is_named():
    with pytest.raises(ValueError, match="'less', expected one of: all, "):
        measure_quality(small(), OPTIONS, ["less"])
    assert len({variant.name for variant in variants(0)}) == len(variants(0))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Vowpal Wabbit, ids", "Vowpal Wabbit, all numbers", "River, ids"])
def test_a_linear_learner_learns(name):
    pytest.importorskip("vowpalwabbit" if name.startswith("Vowpal") else "river")
    from recsys.events.event_types import FeatureBlock
    from recsys.features.feature_set import FeatureSet
    from recsys.features.request_features import RequestFeatures

    features = FeatureSet(small().schema)
    (learner,) = [its for its in linear_learners(features) if its.name == name]
    user = np.zeros(features.user_columns, np.int64)
    user[0] = 5
    items = np.zeros((2, features.item_columns), np.int64)
    items[:, 0] = (7, 8)
    dense = np.zeros((2, 3), np.float32)
    for _ in range(50):
        for n, keys in enumerate(items):
            block = FeatureBlock(
                feature_set=features.digest, user_keys=user.tobytes(), item_keys=keys.tobytes()
            )
            learner.learn(block, n == 0)
    none = np.zeros((0, 1))
    request = RequestFeatures(features.digest, user, items, none.astype(np.int64), none, dense)
    liked, other = learner.score(request)
    assert liked > other + 0.1  # River goes slowly
