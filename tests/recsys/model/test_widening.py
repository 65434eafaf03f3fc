"""A wider model begins with the predictions of the old one; a replaced half-life keeps its weights."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from recsys.config.system_config import ModelConfig, tables_of
from recsys.features.families.declared import Declared
from recsys.features.feature_set import FeatureSet
from recsys.features.request_features import RequestFeatures
from recsys.model.choice_model import choice_size
from recsys.model.model import Model, build_model
from recsys.model.widening import widened
from recsys.model.wider_set import Narrowing, columns_from, united
from serving.replica.row_store import RowStore
from serving.scorers.probabilities import probabilities
from tests.support.training.small_feed import FEATURES

CONFIG = ModelConfig(dim=4, vector_dim=4, hidden=(8, 5))
DAY = replace(FEATURES, declared=Declared(half_lives_h=(6.0, 24.0, 336.0), near=True))
LISTS = replace(FEATURES, declared=Declared(whole_list=True))
FASTER = replace(FEATURES, declared=Declared(half_lives_h=(1.0, 336.0)))


def trained(features: FeatureSet) -> tuple[Model, dict[str, NDArray[Any]]]:
    """A model with other weights in each place, and its part of a snapshot."""
    model = build_model(features, CONFIG)
    draw = np.random.default_rng(1)
    vectors: dict[str, NDArray[Any]] = {
        f"dense/{name}": draw.normal(0, 0.3, model.dense_size()).astype(np.float32)
        for name in ("values", "averaged", "m", "v")
    }
    size = choice_size(features)
    curvature = draw.normal(0, 1, size * (size + 1) // 2)
    vectors["dense/curvature"] = curvature.astype(np.float32)
    model.write_dense(vectors["dense/values"])
    return model, vectors


def request_of(features: FeatureSet, items: int = 40) -> RequestFeatures:
    draw = np.random.default_rng(2)
    keys, length = draw.integers(1, 2**60, (items, features.item_columns)), features.history_length
    return RequestFeatures(
        features.digest,
        draw.integers(1, 2**60, features.user_columns),
        keys,
        draw.integers(1, 2**60, (length, features.history_keys)),
        draw.uniform(0.1, 1, (length, features.outcomes)).astype(np.float32),
        draw.normal(0, 1, (items, len(features.dense_names))).astype(np.float32),
    )


def predict(model: Model, request: RequestFeatures) -> NDArray[np.float32]:
    rows = {t.name: RowStore(t, 0) for t in tables_of(CONFIG)}
    return probabilities(model, rows, [request])


def log_loss(predicted: NDArray[np.float32], labels: NDArray[np.bool_]) -> float:
    of_label = np.where(labels, predicted, 1 - predicted).astype(np.float64)
    return -float(np.log(of_label).mean())


def test_another_ranker_does_not_begin_from_a_narrower_model() -> None:
    arrays, plugin = trained(FEATURES)[1], replace(CONFIG, ranker="sequence@1")
    assert widened(arrays, FEATURES, FEATURES, plugin) is arrays
    with pytest.raises(ValueError, match="model.ranker is 'sequence@1', .* with the built-in ranker first"):
        widened(arrays, FEATURES, DAY, plugin)


@pytest.mark.parametrize(
    ("narrow", "new"),
    [
        (FEATURES, DAY),
        (FEATURES, replace(FEATURES, history=9)),
        (FEATURES, LISTS),
        (LISTS, replace(DAY, declared=replace(DAY.declared, whole_list=True))),
    ],
)
def test_the_wider_model_predicts_as_before(narrow: FeatureSet, new: FeatureSet) -> None:
    old, arrays = trained(narrow)
    wide = united(narrow, new)
    model = build_model(wide, CONFIG)
    arrays["held/dense"] = arrays["dense/values"]  # what replicas hold is widened, too
    begun = widened(arrays, narrow, wide, CONFIG)
    assert np.array_equal(begun["held/dense"], begun["dense/values"])
    model.write_dense(begun["dense/values"])
    request = request_of(wide)
    if wide.history > FEATURES.history:  # older entries are new: without them
        request.outcomes_TO[FEATURES.history :] = 0.0
    before = predict(old, Narrowing(wide, narrow).features(request))
    after = predict(model, request)
    np.testing.assert_allclose(after, before, atol=1e-6)
    assert np.ptp(before) > 0.01
    labels = np.random.default_rng(3).uniform(size=before.shape) < before
    assert abs(log_loss(after, labels) - log_loss(before, labels)) < 1e-6


def test_back_and_forth_changes_nothing() -> None:
    _, arrays = trained(FEATURES)
    wide = united(FEATURES, DAY)
    again = widened(widened(arrays, FEATURES, wide, CONFIG), wide, FEATURES, CONFIG)
    assert all(np.array_equal(again[name], arrays[name]) for name in arrays)
    assert widened(arrays, FEATURES, FEATURES, CONFIG) is arrays


def test_optimizer_state_of_new_columns_begins_at_0() -> None:
    _, arrays = trained(FEATURES)
    wide = united(FEATURES, DAY)
    added = len(wide.dense_names) - len(FEATURES.dense_names)
    begun, old = widened(arrays, FEATURES, wide, CONFIG), choice_size(FEATURES)
    curvature = begun.pop("dense/curvature")
    sizes = [size * (size + 1) // 2 for size in (choice_size(wide), old)]
    assert [len(curvature), np.count_nonzero(curvature)] == sizes
    for name, vector in begun.items():
        wanted = added * CONFIG.hidden[0] + choice_size(wide) - old
        assert np.count_nonzero(vector == 0) == wanted, name
        assert vector.dtype == np.float32


def test_a_replaced_half_life_begins_with_the_weights_of_the_old_one() -> None:
    places = columns_from(FEATURES, FASTER)
    assert places == list(range(len(FEATURES.dense_names)))  # both have two half-lives
    _, arrays = trained(FEATURES)
    assert all(
        np.array_equal(vector, arrays[name])
        for name, vector in widened(arrays, FEATURES, FASTER, CONFIG).items()
    )
