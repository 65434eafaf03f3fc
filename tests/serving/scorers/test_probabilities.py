from dataclasses import replace

import numpy as np
import pytest
import torch

from recsys.config.system_config import ModelConfig, laptop
from recsys.features.feature_builder import FeatureBuilder
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import FEED_SCHEMA
from recsys.features.request_features import RequestFeatures
from recsys.model.model import lookup_of, with_missing_row
from recsys.model.tile_kernels import LANES
from serving.replica.replica import Replica
from serving.scorers.probabilities import probabilities, user_vector
from tests.support.serving.replica_harness import NOW_MS, made, viewer
from tests.support.serving.request_batches import batch_of

ITEMS = 320
SMALL = made(items=ITEMS, steps=3)
LAPTOP = made(
    items=ITEMS, features=FeatureSet(FEED_SCHEMA, "all", 20), its_config=replace(laptop(), name="test")
)


# The term that the plug-in adds begins with 0, so its parameters are changed.
PLUGIN = made(
    items=ITEMS,
    features=FeatureSet(FEED_SCHEMA, "all", 20),
    its_config=replace(
        laptop(),
        name="test",
        model=ModelConfig(ranker="examples.sequence_model.recsys_sequence_model:SequenceRanker@1"),
    ),
)
PLUGIN.model.write_dense(PLUGIN.model.read_dense() + np.float32(0.01))


@pytest.fixture(params=[SMALL, LAPTOP, PLUGIN], ids=["small", "laptop", "plug-in"])
def replica(request: pytest.FixtureRequest) -> Replica:
    return request.param


def asked(replica: Replica, indices: list[int] | np.ndarray, surface: str = "feed") -> RequestFeatures:
    session = viewer(replica, liked=(3, 8, 13), seen=(1, 2))
    return FeatureBuilder(replica.features).build(
        session, surface, {}, np.asarray(indices, np.int64), replica.catalogue, replica.counters, NOW_MS
    )


def scores(replica: Replica, *requests: RequestFeatures) -> np.ndarray:
    return probabilities(replica.model, replica.rows, requests)


@pytest.mark.parametrize("length", [1, 2, 5, 15, LANES, 17, 46, 64, 299, 300])
def test_a_score_does_not_hang_on_what_is_scored_beside_it(replica: Replica, length: int) -> None:
    everything = scores(replica, asked(replica, np.arange(ITEMS)))
    for start in (0, 1, 7):
        part = scores(replica, asked(replica, np.arange(start, start + length)))
        assert part.tobytes() == everything[start : start + length].tobytes()


def test_requests_scored_together_have_the_scores_that_they_have_alone(replica: Replica) -> None:
    given = ([1, 2, 3], [9], np.arange(40), [4, 4])
    requests = [asked(replica, i, surface) for i, surface in zip(given, "abca", strict=True)]
    alone = np.concatenate([scores(replica, r) for r in requests])
    assert scores(replica, *requests).tobytes() == alone.tobytes()
    assert (alone[-1] == alone[-2]).all()  # the same item twice
    assert len({row.tobytes() for row in alone}) > 40


def test_of_nothing_there_are_no_scores(replica: Replica) -> None:
    width = len(replica.features.schema.labels) + 1
    none, one = asked(replica, []), asked(replica, [1])
    assert scores(replica).shape == scores(replica, none).shape == (0, width)
    assert scores(replica, none, one, none).tobytes() == scores(replica, one).tobytes()


def test_they_are_probabilities(replica: Replica) -> None:
    found = scores(replica, asked(replica, np.arange(ITEMS)))
    assert ((found > 0) & (found < 1)).all() and found.dtype == np.float32
    assert found.std(0).min() > 1e-4


def test_rows_however_large_give_0_or_1(replica: Replica) -> None:
    extreme = replica.model.read_dense()
    try:
        replica.model.write_dense(extreme * 1e6)
        found = scores(replica, asked(replica, np.arange(20)))
        assert ((found >= 0) & (found <= 1)).all()
    finally:
        replica.model.write_dense(extreme)


def test_the_user_side_is_that_which_is_learned(replica: Replica) -> None:
    request = asked(replica, [3])
    batch = batch_of(replica.features, [request])
    lookup = lookup_of(batch)
    rows = {name: with_missing_row(replica.rows[name].lookup(keys)) for name, keys in lookup.keys.items()}
    with torch.inference_mode():
        learned = replica.model.user_vectors(batch, lookup, rows["users"], rows["items"]).numpy()[0]
    served = user_vector(replica.model, replica.rows, request)
    assert served.dtype == np.float32 and np.abs(learned).max() > 0.01
    np.testing.assert_allclose(served, learned, rtol=1e-4, atol=1e-6)


def test_the_user_side_does_not_hang_on_the_candidates(replica: Replica) -> None:
    def vector(indices: list[int]) -> np.ndarray:
        return user_vector(replica.model, replica.rows, asked(replica, indices))

    assert vector([]).any()
    assert vector([5]).tobytes() == vector([1, 2, 3]).tobytes() == vector([]).tobytes()
